"""Artifacts as stages leave them, small enough for a test without torch: a base model and adapters; and all that serving asks for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from itool.artifacts.commit import commit
from itool.artifacts.manifest import Manifest
from itool.artifacts.store import Store
from itool.cluster.decide_serving import Serve, StopServing
from itool.cluster.serving import KubernetesServing
from itool.cluster.wish import StoredArtifact
from itool.config import RunConfig
from itool.stages import StageId
from tests.cluster.in_memory_cluster import InMemoryCluster, Object

MODEL_CONFIG = {"vocab_size": 96, "eos_token_id": 2, "max_position_embeddings": 256}


def store_artifact(store: Store, stage: StageId, key: str, files: dict[str, bytes], scratch: Path) -> StoredArtifact:
    """Commit files as the artifact of a stage."""
    folder = scratch / "commits" / key
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    prefix = f"demo/{stage}/{key}"
    draft = Manifest(run="demo", iteration=stage.iteration, stage=stage.name, key=key, files={}, started=at, ended=at)
    return StoredArtifact(prefix=prefix, digest=commit(store, prefix, folder, draft).digest)


def store_model(store: Store, scratch: Path, key: str = "base") -> StoredArtifact:
    """A prepare artifact: the base model beside data that no server needs."""
    files = {"model/config.json": json.dumps(MODEL_CONFIG).encode(), "model/model.safetensors": key.encode(), "buffer.jsonl": b"{}\n"}
    return store_artifact(store, StageId(0, "prepare"), key, files, scratch)


def store_adapter(store: Store, scratch: Path, key: str) -> StoredArtifact:
    """A training stage's artifact; the key is also its weights."""
    files = {
        "adapter/adapter_config.json": b'{"peft_type": "LORA"}',
        "adapter/adapter_model.safetensors": key.encode(),
        "training.jsonl": b"{}\n",
    }
    return store_artifact(store, StageId(1, "dpo"), key, files, scratch)


def serve_and_stop(config: RunConfig, cluster: InMemoryCluster, owner: Object, scratch: Path) -> None:
    """What the controller asks of a cluster for vLLM: a Deployment that is new, then one that is there, then none of its pods."""
    serving = KubernetesServing(
        config, cluster.store, cluster, list, clock=lambda: cluster.now, owner=lambda: owner, keep_service=lambda _name, _make: None
    )
    asked = Serve(store_model(cluster.store, scratch), store_adapter(cluster.store, scratch, "one"), "asked")
    serving.state()
    serving.serve(asked)
    serving.serve(asked)
    serving.stop(StopServing("enough"))
