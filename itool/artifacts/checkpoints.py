"""Checkpoints of a running stage: verified copies of a folder, newest last, under the artifact that the stage is going to write.

    <prefix>/checkpoints/<done, 8 digits>-<attempt>/checkpoint.json     written last, lists every file with its SHA-256
    <prefix>/checkpoints/<done, 8 digits>-<attempt>/<files>

`done` counts updates of a training, examples or trees. The attempt in the name keeps two attempts of one stage out of each other's files.
They go away with the stage's commit.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from itool.artifacts.commit import fetch
from itool.artifacts.manifest import Files, describe_folder
from itool.artifacts.store import Store, delete_tree
from itool.errors import ArtifactError, InputError
from itool.logs import get_logger

KEPT_CHECKPOINTS = 2
CHECKPOINT_NAME = "checkpoint.json"
_FOLDER = re.compile(r"/checkpoints/(\d{8})-([0-9a-f]+)/")
_log = get_logger(__name__)


class CheckpointManifest(BaseModel):
    """What a checkpoint holds, and what the stage had spent and counted until then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: int
    files: Files
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in a local folder."""

    folder: Path
    manifest: CheckpointManifest


class Checkpoints:
    """The checkpoints of one stage (or one shard) of one attempt."""

    def __init__(self, store: Store, prefix: str, attempt: str) -> None:
        self._store = store
        self._prefix = f"{prefix}/checkpoints"
        self._attempt = attempt

    def save(self, folder: Path, done: int, *, seconds: float, gpu_seconds: float, tokens: int) -> str:
        """Store a folder, its manifest last, and drop all checkpoints but the newest and this one. Returns its folder in the store.

        Those of an earlier attempt may be ahead and yet of no use.
        """
        files = describe_folder(folder)
        if not files:
            raise InputError(f"checkpoint folder {folder} is empty")
        target = f"{self._prefix}/{done:08d}-{self._attempt}"
        for path in files:
            self._store.upload(folder / path, f"{target}/{path}")
        manifest = CheckpointManifest(done=done, files=files, seconds=seconds, gpu_seconds=gpu_seconds, tokens=tokens)
        self._store.write(f"{target}/{CHECKPOINT_NAME}", manifest.model_dump_json(indent=2).encode())
        for old in self._folders()[KEPT_CHECKPOINTS:]:
            if old != target:
                delete_tree(self._store, old)
        return target

    def latest(self, scratch: Path) -> Checkpoint | None:
        """A verified copy, below `scratch`, of the newest checkpoint that is whole; damaged and unfinished ones are passed over."""
        for folder in self._folders():
            try:
                return self._fetch(folder, scratch / "resumed")
            except ArtifactError as error:
                _log.warning("checkpoint skipped", checkpoint=folder, reason=str(error))
        return None

    def discard(self) -> None:
        """Delete all of them, of every attempt."""
        delete_tree(self._store, self._prefix)

    def _folders(self) -> list[str]:
        """Checkpoint folders, newest first; complete ones before an unfinished one with as much done."""
        sizes = self._store.list(self._prefix)
        found = {match.group(1, 2): key[: match.end() - 1] for key in sizes if (match := _FOLDER.search(key))}
        order = sorted(found, key=lambda name: (name[0], f"{found[name]}/{CHECKPOINT_NAME}" in sizes), reverse=True)
        return [found[name] for name in order]

    def _fetch(self, folder: str, target: Path) -> Checkpoint:
        name = f"{folder}/{CHECKPOINT_NAME}"
        try:
            manifest = CheckpointManifest.model_validate_json(self._store.read(name))
        except ValidationError:
            raise ArtifactError(f"{name} is not a complete checkpoint manifest") from None
        shutil.rmtree(target, ignore_errors=True)
        for path, entry in manifest.files.items():
            fetch(self._store, f"{folder}/{path}", entry.sha256, target / path)
        return Checkpoint(target, manifest)
