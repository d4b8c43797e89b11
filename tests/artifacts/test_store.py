"""Both stores keep one contract: whole objects or none, one winner per conditional write, errors in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itool.artifacts.catalogue import remove_artifact
from itool.artifacts.disk import storage_error
from itool.artifacts.store import WORK_FOLDER, FolderStore, Store, delete_tree, open_store
from itool.config import StoreConfig
from itool.errors import ArtifactError, ConfigError, DependencyError, StorageError

NAMES = st.text(alphabet="abcXYZ019._- é", min_size=1, max_size=12).map(str.strip).filter(lambda name: name.strip(".") != "")


def test_what_is_written_is_read_back(store: Store) -> None:
    assert store.size("run/a") is None
    store.write("run/a", b"one")
    store.write("run/a", b"four")
    assert store.read("run/a") == b"four"
    assert store.size("run/a") == 4
    assert store.list("run") == {"run/a": 4}


def test_create_leaves_an_existing_object_alone(store: Store) -> None:
    assert store.create("run/m", b"first")
    assert not store.create("run/m", b"second")
    assert store.read("run/m") == b"first"


def test_exactly_one_of_many_creators_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for attempt in range(5):
            won = list(pool.map(lambda i, a=attempt: store.create(f"race/{a}", b"%d" % i), range(8)))
            assert won.count(True) == 1
            assert store.read(f"race/{attempt}") == b"%d" % won.index(True)


def test_files_go_up_and_come_down(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_000))
    content = source.read_bytes()
    store.upload(source, "run/big")
    assert source.exists()
    store.upload(source, "run/moved", consume=True)
    store.download("run/moved", tmp_path / "deep/copy")
    assert (tmp_path / "deep/copy").read_bytes() == store.read("run/big") == content


def test_a_list_holds_one_folder_and_not_its_namesakes(store: Store) -> None:
    for key in ("run/i1/score/x", "run/i10/score/x", "run2/x", "run/i1/score/y.json"):
        store.write(key, b"1")
    assert sorted(store.list("run/i1")) == ["run/i1/score/x", "run/i1/score/y.json"]
    assert sorted(store.list("run")) == ["run/i1/score/x", "run/i1/score/y.json", "run/i10/score/x"]
    assert len(store.list("")) == 4
    assert store.list("nothing") == {}


def test_deleting_is_repeatable(store: Store) -> None:
    store.write("run/a/b", b"1")
    store.write("run/c", b"1")
    store.delete("run/a/b")
    store.delete("run/a/b")
    delete_tree(store, "run")
    assert store.list("") == {}


def test_a_missing_object_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run/none"):
        store.read("run/none")
    with pytest.raises(ArtifactError, match="run/none"):
        store.download("run/none", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.lists(NAMES, min_size=2, max_size=2).map("/".join), st.binary(max_size=50), max_size=4))
def test_any_names_and_contents_round_trip(tmp_path: Path, objects: dict[str, bytes]) -> None:
    folder = tmp_path / "names"
    store = FolderStore(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for key, data in objects.items():
        store.write(key, data)
    assert store.list("") == {key: len(data) for key, data in objects.items()}
    assert all(store.read(key) == data for key, data in objects.items())


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", ""])
def test_a_key_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ArtifactError):
        FolderStore(tmp_path).write(key, b"")


def test_an_unknown_kind_of_root_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="gs://"):
        open_store("gs://bucket", StoreConfig())


def test_a_file_where_a_folder_is_needed_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("I am a file")
    store = FolderStore(tmp_path / "root")
    for action in (lambda: store.write("a/b", b""), lambda: store.create("a/b", b""), lambda: store.list("")):
        with pytest.raises(StorageError, match="root"):
            action()


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = FolderStore(small_disk / "store")
    store.write("run/small", b"x")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 1_000_000)
    writers: list[Callable[[], object]] = [
        lambda: store.write("run/big", big.read_bytes()),
        lambda: store.create("run/big", big.read_bytes()),
        lambda: store.upload(big, "run/big"),
    ]
    for write in writers:
        with pytest.raises(StorageError, match="No space left on device"):
            write()
    assert [path.name for path in (small_disk / "store/run").iterdir()] == ["small"]


def test_a_read_only_disk_is_a_storage_error(small_disk: Path) -> None:
    FolderStore(small_disk).write("run/a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="Read-only file system"):
        FolderStore(small_disk).write("run/b", b"x")
    assert FolderStore(small_disk).read("run/a") == b"x"


def test_a_write_that_fails_half_way_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    store.write("run/a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError):
        store.write("run/a", b"new")
    assert store.list("") == {"run/a": 3}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]
    assert store.read("run/a") == b"old"


def test_create_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = FolderStore(tmp_path)
    assert store.create("run/m", b"first")
    assert not store.create("run/m", b"second")
    assert store.list("") == {"run/m": 5}

    def full(_descriptor: int) -> None:
        if store.path("run/n").exists():
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError):
        store.create("run/n", b"half of it")
    assert store.list("") == {"run/m": 5}


WRITES: dict[str, Callable[[Store, Path], object]] = {
    "write": lambda store, _: store.write("run/a", b"1"),
    "create": lambda store, _: store.create("run/a", b"1"),
    "upload": lambda store, source: store.upload(source, "run/a"),
    "move": lambda store, source: store.upload(source, "run/a", consume=True),
}


@pytest.mark.parametrize("how", WRITES)
def test_an_object_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    store, synced = FolderStore(tmp_path / "store"), []
    (tmp_path / "source").write_bytes(b"1")
    monkeypatch.setattr("os.fsync", lambda file: synced.append((os.fstat(file).st_ino, store.path("run/a").exists())))
    WRITES[how](store, tmp_path / "source")
    inode, folder = (path.stat().st_ino for path in (store.path("run/a"), store.path("run")))
    assert synced == [(inode, False), (folder, True)]


def test_the_folder_of_a_store_stays_when_its_last_object_goes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "mine" / "runs")
    store.write("run/a", b"1")
    store.delete("run/a")
    assert list(store.folder.iterdir()) == []


def test_an_artifact_that_is_removed_half_way_is_none_any_more(tmp_path: Path) -> None:
    class Dying(FolderStore):
        deleted = 0

        def delete(self, key: str) -> None:
            if self.deleted:
                raise DependencyError("S3 does not answer")
            self.deleted += 1
            super().delete(key)

    store, prefix = Dying(tmp_path), "demo/i0/prepare/key"
    for name in ("0abc/x", "manifest.json"):
        store.write(f"{prefix}/{name}", b"1")
    with pytest.raises(DependencyError):
        remove_artifact(store, prefix)
    assert store.list("") == {f"{prefix}/0abc/x": 1}


def test_what_stages_are_still_writing_is_no_object(tmp_path: Path) -> None:
    (tmp_path / WORK_FOLDER / "i1-dpo").mkdir(parents=True)
    (tmp_path / WORK_FOLDER / "i1-dpo" / "weights").write_bytes(b"half")
    assert FolderStore(tmp_path).list("") == {}


def test_a_linked_source_is_copied_not_moved(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(original)
    (tmp_path / "hard").hardlink_to(original)
    store = FolderStore(tmp_path / "store")
    store.upload(tmp_path / "link", "run/a", consume=True)
    store.upload(tmp_path / "hard", "run/b", consume=True)
    store.path("run/a").write_bytes(b"changed")
    assert original.read_bytes() == b"mine"
    assert not store.path("run/b").samefile(original)


def test_a_remedy_fits_what_was_tried(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "root")
    store.write("a/manifest.json", b"{}")
    with pytest.raises(StorageError, match=r"Is a directory\. A folder stands where a file is needed: move it away"):
        store.read("a")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"A file stands where a folder is needed: move it away, or name another folder"):
        store.download("a/manifest.json", tmp_path / "file" / "manifest.json")
    with pytest.raises(StorageError, match=r"cannot use /proc/none: No such file or directory\. Name a folder that can be made"):
        store.download("a/manifest.json", Path("/proc/none/manifest.json"))
    full = OSError(errno.ENOSPC, "no", "/store/manifest.json", None, "/out/manifest.json")  # as copyfile raises it
    assert str(storage_error(full, tmp_path, "target")).startswith("cannot use /out/manifest.json: No space left on device. Free some")
    denied = PermissionError(errno.EACCES, "no", "/data/manifest.json")
    assert str(storage_error(denied, tmp_path, "reading")).endswith("Permission denied. Change its permissions so that it can be read")
