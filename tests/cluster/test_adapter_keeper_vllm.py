"""The adapter keeper beside a real vLLM server."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from itool.artifacts.store import FolderStore
from itool.cluster.adapter_keeper import AdapterKeeper, KeeperSettings, fetch_model
from itool.cluster.wish import StoredArtifact, read_proof, write_wish
from itool.config import PolicyConfig, StoreConfig
from itool.policy.model_folder import read_model_folder
from itool.policy.vllm import VllmPolicy, adapter_name
from itool.stages import StageId
from tests.cluster.serving_scenes import store_artifact
from tests.cluster.test_adapter_keeper import POD, RUN, until
from tests.policy.conftest import CONTEXT, Folders, folders, start_server

__all__ = ["folders"]  # a fixture that is used by its name

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]


def store_folder(store: FolderStore, folder: Path, part: str, stage: StageId, scratch: Path) -> StoredArtifact:
    files = {f"{part}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return store_artifact(store, stage, folder.name, files, scratch)


def test_a_real_server_changes_adapters_and_gets_its_own_back_after_it_was_killed(folders: Folders, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    model = store_folder(store, folders.model, "model", StageId(0, "prepare"), tmp_path)
    first, second = (store_folder(store, path, "adapter", StageId(1, "dpo"), tmp_path) for path in (folders.adapter, folders.other_adapter))
    settings = KeeperSettings(root=store.root, run=RUN, store=StoreConfig(), model=model, context_tokens=CONTEXT)
    fetch_model(settings, store, tmp_path / "model")
    (tmp_path / "adapters").mkdir()

    async def story() -> None:
        async with start_server(folders, tmp_path / "server.log") as server:
            keeper = AdapterKeeper(settings, store, POD, vllm_url=server.url, model=tmp_path / "model", adapters=tmp_path / "adapters")
            work = asyncio.create_task(keeper.run())
            write_wish(store, RUN, model, first)
            await until(lambda: _proved(store, 1), 300)
            before = await answers(folders, server.url, folders.adapter)
            write_wish(store, RUN, model, second)
            await until(lambda: _proved(store, 2), 300)
            assert await listed(server.url) == {"base", adapter_name(folders.other_adapter)}
            after = await answers(folders, server.url, folders.other_adapter)
            assert before != pytest.approx(after, abs=1e-3)

            assert server._process is not None
            os.killpg(server._process.pid, signal.SIGKILL)
            await until(lambda: keeper.reason == "vLLM does not answer: ConnectError", 60)
            await server.__aexit__(None, None, None)
            await server.__aenter__()  # the same address, a new process that knows no adapter
            await until(lambda: keeper.reason is None, 300)
            assert await listed(server.url) == {"base", adapter_name(folders.other_adapter)}
            assert await answers(folders, server.url, folders.other_adapter) == pytest.approx(after, abs=1e-5)
            work.cancel()

    asyncio.run(story())


def _proved(store: FolderStore, generation: int) -> bool:
    proof = read_proof(store, RUN, POD)
    return proof is not None and proof.generation == generation


async def listed(url: str) -> set[str]:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        return {model["id"] for model in (await client.get("/v1/models")).json()["data"]}


async def answers(folders: Folders, url: str, adapter: Path) -> list[float]:
    """What a stage sees that waits for the adapter."""
    config = PolicyConfig(adapters="wait", startup_seconds=60)
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)
    async with VllmPolicy(url, folder, adapter, policy=config) as policy:
        return await policy.logprobs([5, 17, 33], [50, 20, 30])
