"""What all that write to a disk share: the name of an unfinished file, the cache, and the operating system's errors with a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal

from itool.errors import StorageError

TEMPORARY_SUFFIX = ".itool-tmp"

Use = Literal["root", "reading", "target"]
"""What a path is used for: what a run writes below its root, what is read, or what a person has named for a copy or a stream."""

_IN_THE_WAY = "A file stands where a folder is needed: move it away"
_WRITING = {
    errno.ENOSPC: "Free some space, or set root to a larger disk, and run again",
    errno.EDQUOT: "Free some of your quota, or set root to another disk, and run again",
    errno.EROFS: "Set root to a folder that can be written",
    errno.EACCES: "Set root to a folder that can be written, or change its permissions",
    errno.EPERM: "Set root to a folder that can be written, or change its permissions",
    errno.ENOTDIR: f"{_IN_THE_WAY} or set root to a folder",
    errno.EEXIST: f"{_IN_THE_WAY} or set root to a folder",
    errno.EISDIR: "A folder stands where a file is needed: move it away",
}
_READING = {
    errno.EACCES: "Change its permissions so that it can be read",
    errno.EPERM: "Change its permissions so that it can be read",
    errno.ENOTDIR: f"{_IN_THE_WAY} or set root to a folder",
    errno.EISDIR: "A folder stands where a file is needed: move it away",
}
_TARGET = {
    errno.ENOENT: "Name a folder that can be made",
    errno.ENOSPC: "Free some space, or write elsewhere",
    errno.EDQUOT: "Free some of your quota, or write elsewhere",
    errno.EROFS: "Write to a folder that can be written",
    errno.EACCES: "Write to a folder that can be written, or change its permissions",
    errno.EPERM: "Write to a folder that can be written, or change its permissions",
    errno.ENOTDIR: f"{_IN_THE_WAY}, or name another folder",
    errno.EEXIST: f"{_IN_THE_WAY}, or name another folder",
    errno.EISDIR: "A folder stands where a file is needed: move it away, or name another folder",
}
_REMEDIES: dict[Use, dict[int, str]] = {"root": _WRITING, "reading": _READING, "target": _TARGET}


def cache_folder() -> Path:
    """Where files of a remote store and digests of large local files are kept: ITOOL_CACHE, else `itool` in the user's cache folder."""
    if given := os.environ.get("ITOOL_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "itool"


def storage_error(error: OSError, path: Path, use: Use = "root") -> StorageError:
    """An operating system error at a path as one line with a remedy. Of a copy or a move that names two, the second is the one written."""
    place = error.filename2 or error.filename or path
    return StorageError(f"cannot use {place}: {os.strerror(error.errno) if error.errno else error}", remedy=storage_remedy(error, use))


def storage_remedy(error: OSError, use: Use = "root") -> str | None:
    """What the user can do about an operating system error; None for those that nobody expects."""
    return _REMEDIES[use].get(error.errno or 0)
