"""What all that write to a disk share: the name of an unfinished file, and the operating system's errors with a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from itool.errors import StorageError

TEMPORARY_SUFFIX = ".itool-tmp"


def storage_error(error: OSError, path: Path) -> StorageError:
    """An operating system error at a path as one line with a remedy."""
    place = error.filename or path
    return StorageError(f"cannot use {place}: {os.strerror(error.errno) if error.errno else error}", remedy=storage_remedy(error))


def storage_remedy(error: OSError) -> str | None:
    """What the user can do about an operating system error; None for those that nobody expects."""
    remedies = {
        errno.ENOSPC: "Free some space, or set root to a larger disk, and run again",
        errno.EDQUOT: "Free some of your quota, or set root to another disk, and run again",
        errno.EROFS: "Set root to a folder that can be written",
        errno.EACCES: "Set root to a folder that can be written, or change its permissions",
        errno.EPERM: "Set root to a folder that can be written, or change its permissions",
        errno.ENOTDIR: "A file stands where a folder is needed: move it away or set root to a folder",
        errno.EEXIST: "A file stands where a folder is needed: move it away or set root to a folder",
    }
    return remedies.get(error.errno or 0)
