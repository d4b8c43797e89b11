"""Turning a finished staging folder into an artifact: data first, manifest last, exactly once; and joining the shards of a stage.

Two attempts of a stage may finish at the same time (a pod can start twice). Their data folders differ unless their contents are equal,
and only one of them creates the manifest; the other finds its work already done.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from itool.artifacts.manifest import Counts, Manifest, describe_file, describe_folder, manifest_key, parse_manifest
from itool.artifacts.resolve import damage, shard_prefix
from itool.artifacts.store import Store
from itool.commands import removal
from itool.errors import ArtifactError, ItoolError
from itool.logs import get_logger

_log = get_logger(__name__)
_PARALLEL = 16
"""Requests at a time where a stage of thousands of shards is joined: in S3 each is a round trip."""
_LOOKS = 32
"""Other shards that one looks at before it lists all: until nearly all are done, one of so many is not."""


def read_manifest(store: Store, prefix: str) -> Manifest | None:
    """The manifest of an artifact or a shard; None when it is not there. Raises ArtifactError when it is damaged."""
    key = manifest_key(prefix)
    if store.size(key) is None:
        return None
    return parse_manifest(store.read(key), f"{store.root}/{key}")


def read_whole(store: Store, prefix: str) -> Manifest | None:
    """The manifest of an artifact or a shard that is there with every file that it lists, else None."""
    manifest = read_manifest(store, prefix)
    return manifest if manifest is not None and damage(manifest, prefix, store.list(prefix)) is None else None


def commit(store: Store, prefix: str, folder: Path, draft: Manifest) -> Manifest:
    """Store every file of a local folder (the files are moved where possible), then the manifest.

    `draft` is the manifest without files. Returns the manifest that stands: this one, or the one of the attempt that was quicker. What
    interrupted or slower attempts left under the prefix (other data folders, checkpoints, shards) is removed.
    """
    files = describe_folder(folder)
    if not files:
        raise ItoolError(f"stage {draft.id} wrote no file: a stage must write what stages.py says")
    manifest = draft.model_copy(update={"files": files})
    if not _create(store, prefix, folder, manifest):
        manifest = _standing(store, prefix, manifest)
    sweep(store, prefix, manifest)
    return manifest


def join_shards(store: Store, prefix: str, shards: int, scratch: Path, check: Callable[[Counts], None] = lambda _: None) -> Manifest | None:
    """Join the shards of a stage into its artifact once all of them are done; None before that.

    JSONL files are concatenated in shard order, counts and numeric metrics added. Any number of shards may try at the same time. `check`
    raises where the counts of all together are such that there shall be no artifact.
    """
    try:
        if joined := _join_shards(store, prefix, shards, scratch, check):
            return joined
    except ArtifactError:
        if store.size(manifest_key(prefix)) is None:
            raise
    standing = read_manifest(store, prefix)  # another shard may have joined them, and removed them while this one was reading
    if standing is not None:
        sweep(store, prefix, standing)  # a shard that was done twice comes after that
    return standing


def fetch(store: Store, key: str, expected_sha256: str, target: Path) -> None:
    """Copy one object to a local file and check its content. Raises ArtifactError when it is not what its manifest says."""
    store.download(key, target)
    check_file(target, expected_sha256, f"{store.root}/{key}")


def fetch_file(store: Store, prefix: str, manifest: Manifest, path: str, target: Path) -> Path:
    """Copy one file of an artifact or a shard to a local file, checked. Raises ArtifactError when it is not what the manifest says."""
    try:
        fetch(store, manifest.file_key(prefix, path), manifest.files[path].sha256, target)
    except ArtifactError as error:
        raise to_be_removed(error, store, prefix) from None
    return target


def read_file(store: Store, prefix: str, manifest: Manifest, path: str) -> bytes:
    """One file of an artifact, checked. Raises ArtifactError when it is gone or not what the manifest says."""
    key = manifest.file_key(prefix, path)
    try:
        data = store.read(key)
    except ArtifactError as error:
        raise to_be_removed(error, store, prefix) from None
    if hashlib.sha256(data).hexdigest() != manifest.files[path].sha256:
        raise to_be_removed(f"{store.root}/{key} was altered: its SHA-256 is not the manifest's", store, prefix)
    return data


def to_be_removed(problem: object, store: Store, prefix: str) -> ArtifactError:
    """The error about an artifact of which nothing can be used."""
    return ArtifactError(str(problem), remedy=f"Remove it with {removal(prefix, store.root)} and run again")


def check_file(path: Path, expected_sha256: str, origin: str) -> None:
    """Raise ArtifactError unless the local file has this SHA-256."""
    try:
        found = describe_file(path).sha256
    except FileNotFoundError:
        raise ArtifactError(f"{origin} does not exist") from None
    if found != expected_sha256:
        raise ArtifactError(f"{origin} was altered: its SHA-256 is not the manifest's")


def _join_shards(store: Store, prefix: str, shards: int, scratch: Path, check: Callable[[Counts], None]) -> Manifest | None:
    """A look at a few others tells a shard that it is not the last, a listing of all that it is; what is read then many threads read.

    A listing of thousands of shards has dozens of pages: if each of n shards asked for it, the requests would grow with n².
    """
    folders = [shard_prefix(prefix, shard, shards) for shard in range(shards)]
    wanted = [manifest_key(folder) for folder in folders]
    some = random.sample(wanted, min(_LOOKS, shards))
    if any(store.size(key) is None for key in some) or set(wanted) - store.list(f"{prefix}/shards").keys():
        return None
    joined = scratch / "joined"
    shutil.rmtree(joined, ignore_errors=True)
    joined.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=scratch) as parts, ThreadPoolExecutor(_PARALLEL) as pool:  # the pool ends before its folder
        manifests = [manifest for manifest in pool.map(partial(read_manifest, store), folders) if manifest is not None]
        if len(manifests) < shards:
            return None  # another shard has joined and removed them
        whole = _add_manifests(manifests)
        check(whole.counts)
        files = [(folder, manifest, path) for folder, manifest in zip(folders, manifests, strict=True) for path in manifest.files]

        def get(file: tuple[str, Manifest, str]) -> Path:
            folder, manifest, path = file
            return fetch_file(store, folder, manifest, path, Path(parts) / folder.rpartition("/")[2] / path)

        for (_, _, path), part in zip(files, pool.map(get, files), strict=True):
            _append(part, joined / path)
            part.unlink()
    return commit(store, prefix, joined, whole)


def _append(part: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("rb") as source, target.open("ab") as sink:
        shutil.copyfileobj(source, sink)


def _add_manifests(parts: list[Manifest]) -> Manifest:
    counts = parts[0].counts
    metrics = parts[0].metrics
    for part in parts[1:]:
        counts = counts.plus(part.counts)
        metrics = add_metrics(metrics, part.metrics)
    return parts[0].model_copy(
        update={
            "shard": 0,
            "shards": len(parts),
            "files": {},
            "counts": counts,
            "metrics": metrics,
            "tokens": sum(part.tokens for part in parts),
            "started": min(part.started for part in parts),
            "ended": max(part.ended for part in parts),
            "startup_seconds": max(part.startup_seconds for part in parts),
            "seconds": max(part.seconds for part in parts),
            "gpu_seconds": sum(part.gpu_seconds for part in parts),
            "peak_memory_bytes": max(part.peak_memory_bytes or 0 for part in parts) or None,
        }
    )


def add_metrics(left: Any, right: Any) -> Any:
    """Join the metrics of two shards: numbers are added, lists concatenated, mappings joined by key; anything else must be equal."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left | {name: add_metrics(left[name], value) if name in left else value for name, value in right.items()}
    if isinstance(left, list) and isinstance(right, list):
        return left + right
    numbers = [value for value in (left, right) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 2:
        return left + right
    if left != right:
        raise ItoolError(f"shards report {left!r} and {right!r} for one metric, which cannot be added")
    return left


def _create(store: Store, prefix: str, folder: Path, manifest: Manifest) -> bool:
    """Store data and manifest; False when another attempt's manifest stands: what it lists, others may be reading."""
    if store.size(manifest_key(prefix)) is not None:
        return False
    target = manifest.data_folder(prefix)
    for path in manifest.files:
        store.upload(folder / path, f"{target}/{path}", consume=True)
    return store.create(manifest_key(prefix), manifest.to_json().encode())


def _standing(store: Store, prefix: str, mine: Manifest) -> Manifest:
    """The manifest that another attempt wrote first; it must be whole."""
    standing = read_manifest(store, prefix)
    if standing is None:
        raise ArtifactError(f"{prefix} was removed while it was written", remedy="Run again")
    problem = damage(standing, prefix, store.list(prefix))
    if problem:
        raise to_be_removed(problem, store, prefix)
    if standing.digest != mine.digest:
        _log.warning(
            "another attempt finished first with another result", prefix=prefix, kept=standing.digest[:12], dropped=mine.digest[:12]
        )
    return standing


def sweep(store: Store, prefix: str, manifest: Manifest) -> None:
    """Remove what is not the artifact's: other attempts' data, checkpoints, shards."""
    kept = f"{manifest.data_folder(prefix)}/"
    swept = [key for key in store.list(prefix) if not key.startswith(kept) and key != manifest_key(prefix)]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(store.delete, swept))
