"""What lies at the local paths that `prepare` reads, as fingerprints: a file that was corrected is another input under the same name.

They stand beside the paths among the settings of `prepare`, in its key and its manifest. Why: docs/decisions/0028.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from itool.artifacts.disk import cache_folder
from itool.artifacts.manifest import describe_file
from itool.artifacts.store import FolderStore
from itool.config import RunConfig
from itool.errors import ArtifactError, StorageError
from itool.logs import get_logger
from itool.paths import local_path

_log = get_logger(__name__)

CONTENT = " (content)"
"""`data.path (content)` is the fingerprint of what `data.path` names."""
LARGE_BYTES = 256 * 2**20
"""The digest of a larger file is kept in the user's cache folder: not every command that asks how a run stands may read many GB."""
_SHA256 = re.compile(rb"[0-9a-f]{64}")
_READ_OF_FOLDERS = (".json", ".jsonl", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")


def file_fingerprints(config: RunConfig) -> dict[str, str | None]:
    """The fingerprint of each local file or folder, by the name of its setting and `CONTENT`; in a cluster nothing: paths are the pods'.

    None for what is not there or cannot be read (`prepare` itself reports it), and for a hub id.
    """
    if config.runtime.backend != "local":
        return {}
    return {f"{setting}{CONTENT}": _fingerprint(path) for setting, path in _paths(config).items()}


def _paths(config: RunConfig) -> dict[str, Path]:
    data, model = config.data, config.model
    names = {"model.chat_template": model.chat_template}
    if model.path != "demo":
        names["model.path"] = model.path
    if data.source != "demo" and data.path:
        names["data.path"] = data.path
        names["data.held_out_path"] = data.held_out_path
        names["data.tool_pool_path"] = str(data.pool_file) if data.source == "seal_tools" else None
    return {setting: local_path(name) for setting, name in names.items() if name is not None}


def _fingerprint(path: Path) -> str | None:
    """16 hex digits over the names, sizes and digests of a file, or of a folder's files that can be read; None when there is none."""
    try:
        files = _list_read(path) if path.is_dir() else [path]
        entries = [_describe(file) for file in files if file.is_file()]
    except OSError:
        return None
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16] if entries else None


def _list_read(folder: Path) -> list[Path]:
    """The files of a folder that can be read, with the named chat templates of a model's."""
    files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    return sorted(file for file in files if file.suffix in _READ_OF_FOLDERS)


def _describe(file: Path) -> tuple[Any, ...]:
    status = file.stat()
    return file.name, status.st_size, _digest(str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, modified_ns: int, changed_ns: int) -> str:
    """SHA-256 of a file, read once by a process, a large one once by a user, unless the file changes."""
    if size <= LARGE_BYTES:
        return describe_file(Path(path)).sha256
    cache = FolderStore(cache_folder() / "digests")
    name = hashlib.sha256(f"{path} {size} {modified_ns} {changed_ns}".encode()).hexdigest()
    with contextlib.suppress(ArtifactError, StorageError):
        if _SHA256.fullmatch(kept := cache.read(name)):
            return kept.decode("ascii")
    _log.warning("large file is read once", path=path, bytes=size)
    digest = describe_file(Path(path)).sha256
    with contextlib.suppress(ArtifactError, StorageError):  # where nothing can be kept, the next one reads it too
        cache.write(name, digest.encode("ascii"))
    return digest
