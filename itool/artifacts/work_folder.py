"""Where a stage writes until it commits: a private folder that goes with its process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from itool.artifacts.disk import storage_error
from itool.artifacts.store import WORK_FOLDER, FolderStore, Store
from itool.stages import StageId

_FILES, _LOCK = "files", "lock"
"""What the folder holds: the stage's files, and a lock for as long as its process lives."""


@contextlib.contextmanager
def work_folder(store: Store, stage: StageId) -> Iterator[Path]:
    """A private folder for outputs and scratch files, on the store's own disk where there is one; removed afterwards."""
    name = f"{str(stage).replace('/', '-')}-{socket.gethostname()}-{os.getpid()}-"
    parent = store.folder / WORK_FOLDER if isinstance(store, FolderStore) else Path(tempfile.gettempdir())
    try:
        folder, lock = _make_folder(parent, name)
    except OSError as error:
        raise storage_error(error, parent) from None
    try:
        yield folder / _FILES
    finally:
        _remove_work(folder)
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(OSError):
            parent.rmdir() if parent.name == WORK_FOLDER else None


def _make_folder(parent: Path, name: str) -> tuple[Path, int | None]:
    """The folder and its lock. One that is not locked yet may be taken for an orphan's, and an empty parent goes with the last folder."""
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            _remove_orphans(parent)
            folder = Path(tempfile.mkdtemp(prefix=name, dir=parent))
            return folder, _lock(folder, os.O_CREAT)


def _remove_orphans(parent: Path) -> None:
    """Remove what processes of this machine have left that were killed before they could clean up.

    The lock tells whether a process lives. Its number would not: another container may share the folder and the host's name.
    """
    for folder in parent.glob(f"i*-{socket.gethostname()}-*-*"):
        try:
            lock = _lock(folder)
        except FileNotFoundError:  # killed before it had locked it, or with nothing else left to remove
            with contextlib.suppress(OSError):
                folder.rmdir()
        except OSError:
            continue
        else:
            if lock is not None:
                _remove_work(folder)
                os.close(lock)


def _remove_work(folder: Path) -> None:
    """The lock goes last, so that whoever is killed in between leaves what the next one can still remove."""
    shutil.rmtree(folder / _FILES, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, create: int = 0) -> int | None:
    """Lock a work folder. Gives a descriptor to be closed; None where a file system has no locks.

    Raises BlockingIOError while another process has it, FileNotFoundError when it is gone.
    """
    path = folder / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | create, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()  # whoever had it may have removed it
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
