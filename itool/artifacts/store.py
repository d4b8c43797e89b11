"""Where artifacts lie: one small protocol over keys (`run/i1/score/...`), and the implementation over a local folder.

A store knows objects, not artifacts: it never half-writes one, it can create one only if nobody else did, and it says in one line why it
could not. The manifest (`manifest.py`) gives the objects their meaning. The S3 implementation is in `s3.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from itool.artifacts.disk import TEMPORARY_SUFFIX, Use, storage_error
from itool.config import StoreConfig
from itool.errors import ArtifactError, ConfigError
from itool.paths import absolute_path, local_path

WORK_FOLDER = ".work"
"""Folder under a local root for the staging folders of running stages; on the root's own disk, so that a commit moves and never copies."""

_SCHEME = re.compile(r"(s3|s3a|gs|gcs|az|abfss?|file|https?|hdfs):", re.IGNORECASE)
"""What is meant as a URL even where a slash is missing; any other name with a colon is a folder's."""

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Store(Protocol):
    """Objects by key. A key is a relative POSIX path; `list` and `delete_tree` take a folder."""

    @property
    def root(self) -> str:
        """The folder or `s3://bucket/prefix`, for messages."""

    def size(self, key: str) -> int | None:
        """Bytes of an object; None when it does not exist."""

    def read(self, key: str) -> bytes:
        """The whole object. Raises ArtifactError when it does not exist."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object: afterwards it is all there or as it was."""

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless it exists. Returns False, changing nothing, when it does: exactly one of many writers wins."""

    def upload(self, source: Path, key: str, *, consume: bool = False) -> None:
        """Create or replace an object from a file. With `consume` the file may be moved away instead of copied."""

    def download(self, key: str, target: Path) -> None:
        """Copy an object to a file. Raises ArtifactError when it does not exist."""

    def list(self, folder: str) -> dict[str, int]:
        """Every object below a folder: key -> bytes."""

    def delete(self, key: str) -> None:
        """Remove an object; one that does not exist is fine."""

    def local_path(self, key: str) -> Path | None:
        """The file that holds the object, when it already lies on this machine."""


def open_store(root: str, config: StoreConfig, *, hurried: bool = False) -> Store:
    """The store of a `root`: `s3://bucket/prefix` or a local folder (created on the first write).

    `hurried`: for a person who waits; an S3 that hangs is given up within some 11 seconds.
    """
    if root.startswith("s3://"):
        from itool.artifacts.s3 import S3Store  # noqa: PLC0415 - boto3 costs 0.3 s, and a laptop run never needs it

        return S3Store(root, config, attempts=2, read_seconds=5.0) if hurried else S3Store(root, config)
    if "://" in root or _SCHEME.match(root):
        raise ConfigError(f"root = {root!r}: unknown kind of store", remedy="Use a folder or s3://bucket/prefix")
    return FolderStore(Path(root))


def delete_tree(store: Store, folder: str) -> None:
    """Remove every object below a folder."""
    for key in store.list(folder):
        store.delete(key)


class FolderStore:
    """Objects as files below a folder. Writers go through a temporary file, fsync and rename or link.

    The temporary file of a writer that was killed is listed as any object is: what sweeps or removes its folder takes it along.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = absolute_path(local_path(folder))

    @property
    def root(self) -> str:
        return str(self.folder)

    def size(self, key: str) -> int | None:
        path = self.path(key)
        try:
            return path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, path, "reading") from None

    def read(self, key: str) -> bytes:
        path = self.path(key)
        with _explained(path, "reading"):
            return path.read_bytes()

    def write(self, key: str, data: bytes) -> None:
        path = self.path(key)
        with _explained(path), _temporary(path) as temporary:
            _write_synced(temporary, data)
            temporary.replace(path)
            _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        path = self.path(key)
        with _explained(path), _temporary(path) as temporary:
            _write_synced(temporary, data)
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return _create_exclusively(path, data)
            _sync_folder(path.parent)
            return True

    def upload(self, source: Path, key: str, *, consume: bool = False) -> None:
        path = self.path(key)
        with _explained(path):
            if consume and _move(source, path):
                return
            with _temporary(path) as temporary:
                shutil.copyfile(source, temporary)
                _sync(temporary)
                temporary.replace(path)
                _sync_folder(path.parent)

    def download(self, key: str, target: Path) -> None:
        path = self.path(key)
        with _explained(path, "reading"):
            if not path.is_file():
                raise FileNotFoundError(path)
            path.open("rb").close()  # what cannot be read is the store's fault, all else the target's
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, target.parent, "target") from None
        with _explained(target, "target"):
            shutil.copyfile(path, target)

    def list(self, folder: str) -> dict[str, int]:
        start = self.path(folder) if folder.strip("/") else self.folder
        with _explained(start, "reading"):
            return dict(self._walk(start))

    def delete(self, key: str) -> None:
        path = self.path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from None
        for parent in path.parents:  # an empty folder would look like an artifact that is not there
            if parent == self.folder:
                break
            try:
                parent.rmdir()
            except OSError:
                break

    def local_path(self, key: str) -> Path | None:
        return self.path(key)

    def path(self, key: str) -> Path:
        """The file of a key; a key cannot leave the folder."""
        parts = PurePosixPath(key).parts
        if not parts or PurePosixPath(key).is_absolute() or ".." in parts:
            raise ArtifactError(f"{key!r} is not a key inside {self.folder}")
        return self.folder.joinpath(*parts)

    def _walk(self, folder: Path) -> Iterator[tuple[str, int]]:
        try:
            entries = list_folder(folder)
        except FileNotFoundError:  # never written, or removed meanwhile
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not (folder == self.folder and entry.name == WORK_FOLDER):
                    yield from self._walk(folder / entry.name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    yield (folder / entry.name).relative_to(self.folder).as_posix(), entry.stat().st_size


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


@contextlib.contextmanager
def _explained(path: Path, use: Use = "root") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename or path} does not exist") from None
    except OSError as error:
        raise storage_error(error, path, use) from None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new name beside `path`; what is left under it afterwards is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create_exclusively(path: Path, data: bytes) -> bool:
    """Create without hard links (some network and FUSE file systems): exclusive, and removed again when the write fails."""
    try:
        _write_synced(path, data)
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _move(source: Path, target: Path) -> bool:
    """Rename a file into place; False when it has to be copied: another disk, a link, or a file that something else also holds."""
    if source.is_symlink() or source.stat().st_nlink > 1:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    _sync(source)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    _sync_folder(target.parent)
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Some file systems cannot sync a folder; the rename is still atomic there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
