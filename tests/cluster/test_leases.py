"""One controller per run at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from itool.artifacts.store import FolderStore
from itool.cluster import leases
from itool.cluster.leases import FolderLease, LeaseHeld, StoreLease, acquire_within
from itool.errors import ConfigError, DependencyError, StorageError
from tests.fakes.memory_store import MemoryStore


def test_a_second_controller_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    first, second = FolderLease(tmp_path / "demo" / "lock"), FolderLease(tmp_path / "demo" / "lock")
    first.acquire()
    with pytest.raises(DependencyError, match=rf"run demo is held by another controller \(process {os.getpid()} on "):
        second.acquire()
    assert second.holder() is not None
    first.release()
    second.acquire()
    second.release()
    assert second.holder() is None


def test_a_lock_outlives_its_holder_only_as_long_as_a_stage_does(tmp_path: Path) -> None:
    lease = FolderLease(tmp_path / "lock")
    lease.acquire()
    stage = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=lease.inherited)
    lease.release()
    (tmp_path / "lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))  # the holder is dead

    def end_stage(_seconds: float) -> None:
        stage.kill()
        stage.wait()

    later = FolderLease(tmp_path / "lock", sleep=end_stage)
    later.acquire()
    assert stage.returncode is not None
    later.release()


def test_somebody_who_looks_at_that_very_moment_does_not_hold_the_run(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": 4711, "host": "elsewhere"}))  # the last holder, who has ended
    with lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        lease = FolderLease(lock, sleep=lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        lease.acquire()
    assert (FolderLease(lock).holder() or {}).get("pid") == os.getpid()
    lease.release()


@contextmanager
def held_by(lock: Path, **holder: object) -> Iterator[None]:
    """A lock that is taken, and says so of another process."""
    lease = FolderLease(lock)
    lease.acquire()
    lock.write_text(json.dumps({"host": os.uname().nodename, **holder}))
    yield
    lease.release()


def test_a_dead_holders_stage_is_not_waited_for_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "ORPHAN_WAIT_SECONDS", 0.0)
    with held_by(tmp_path / "lock", pid=2**22 + 1), pytest.raises(LeaseHeld):
        FolderLease(tmp_path / "lock", sleep=lambda _: pytest.fail("waits on")).acquire()


def test_another_users_controller_lives_and_cannot_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", refuse)
    other = FolderLease(tmp_path / "demo" / "lock", sleep=lambda _: pytest.fail("waits as for a dead one"))
    with held_by(tmp_path / "demo" / "lock", pid=4711):
        with pytest.raises(LeaseHeld, match="process 4711"):
            other.acquire()
        with pytest.raises(DependencyError, match="run demo is held by another user's process 4711"):
            other.request_stop()


def test_a_holder_elsewhere_is_not_looked_for_among_the_processes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.kill", lambda *_: pytest.fail("a signal to a stranger"))
    with (
        held_by(tmp_path / "demo" / "lock", pid=4711, host="elsewhere"),
        pytest.raises(DependencyError, match=r"run demo is held on elsewhere\. Run `itoolctl cancel demo` there"),
    ):
        FolderLease(tmp_path / "demo" / "lock").request_stop()


@pytest.mark.parametrize("named", [{"pid": -1}, {"pid": 0}, {"pid": "1"}, {"pid": True}, {"pid": 1 << 31}, {}])
def test_a_lock_that_names_no_process_sends_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, object]) -> None:
    """Whoever may write to the root can write -1 there, which is every process of who cancels."""
    monkeypatch.setattr("os.kill", lambda *_: pytest.fail("a signal to a stranger"))
    lock = tmp_path / "demo" / "lock"
    lock.parent.mkdir()
    with lock.open("w") as holding:
        fcntl.flock(holding, fcntl.LOCK_EX)
        json.dump({"host": socket.gethostname(), **named}, holding)
        holding.flush()
        with pytest.raises(DependencyError, match=r"names no process that holds run demo\. Stop it where it was started"):
            FolderLease(lock).request_stop()
        with pytest.raises(LeaseHeld):
            FolderLease(lock, sleep=lambda _: pytest.fail("waits as for a dead one")).acquire()


def test_who_only_looks_is_not_taken_for_a_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert FolderLease(tmp_path / "lock").holder() is None


def test_a_holder_with_a_short_name_is_read_after_one_with_a_long_one(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "long" * 100}))
    lease = FolderLease(tmp_path / "lock")
    lease.acquire()
    assert (FolderLease(tmp_path / "lock").holder() or {}).get("pid") == os.getpid()
    lease.release()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(StorageError, match="demo"):
        FolderLease(tmp_path / "demo" / "lock").acquire()


def test_a_lock_whose_fault_is_unknown_is_named_without_advice_that_may_be_wrong(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.symlink_to(lock)
    with pytest.raises(StorageError, match=f"^cannot use {lock}: Too many levels of symbolic links$"):
        FolderLease(lock).acquire()


def test_a_lock_that_cannot_be_read_does_not_say_that_nobody_holds_the_run(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert FolderLease(lock).holder() is None
    lock.symlink_to(lock)  # root, too, fails to open it
    with pytest.raises(StorageError, match=f"cannot use {lock}: Too many levels of symbolic links"):
        FolderLease(lock).holder()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    lock = tmp_path / "demo" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setattr("fcntl.flock", refuse)
    for ask in (FolderLease(lock).acquire, FolderLease(lock).holder):
        with pytest.raises(StorageError, match=rf"cannot lock {lock}: .*\. Set root to a folder on a file system with locks"):
            ask()


def test_a_lease_that_the_disk_does_not_take_is_given_back(tmp_path: Path) -> None:
    lease, limits = FolderLease(tmp_path / "demo" / "lock"), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot use .*demo/lock"):
            lease.acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    lease.acquire()
    lease.release()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_object_lease_excludes_expires_and_notices_its_loss(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    first = StoreLease(store, "demo", clock=clock, identity={"pid": 1, "host": "a"})
    second = StoreLease(store, "demo", clock=clock, identity={"pid": 2, "host": "b"})
    first.acquire()
    with pytest.raises(DependencyError, match="process 1 on a"):
        second.acquire()
    clock.now += 30
    assert first.renew() is False
    clock.now += 45
    with pytest.raises(DependencyError):
        second.acquire()
    clock.now += 61
    second.acquire()
    with pytest.raises(DependencyError, match="has taken over run demo"):
        first.renew()
    assert second.holder() == {"pid": 2, "host": "b", "expires_at": clock.now + 60}


def test_an_expired_object_lease_goes_to_exactly_one(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    StoreLease(store, "demo", clock=clock).acquire()
    clock.now += 100

    class Overtaken(FolderStore):
        """Another controller acts between our look and our write."""

        def create(self, key: str, data: bytes) -> bool:
            StoreLease(store, "demo", clock=clock, identity={"pid": 7, "host": "quick"}).acquire()
            return super().create(key, data)

    with pytest.raises(DependencyError, match="process 7 on quick"):
        StoreLease(Overtaken(tmp_path), "demo", clock=clock).acquire()


def test_a_generation_that_is_replaced_while_it_is_looked_at_gives_way_to_its_successor(tmp_path: Path) -> None:
    clock = Clock()
    StoreLease(FolderStore(tmp_path), "demo", clock=clock).acquire()
    clock.now += 100

    class Replaced(FolderStore):
        """Another controller takes the run between our list and our read, and deletes what we have seen."""

        def list(self, folder: str) -> dict[str, int]:
            found = super().list(folder)
            if not taken:
                taken.append(StoreLease(FolderStore(tmp_path), "demo", clock=clock, identity={"pid": 7, "host": "quick"}))
                taken[0].acquire()
            return found

    taken: list[StoreLease] = []
    with pytest.raises(LeaseHeld, match="process 7 on quick"):
        StoreLease(Replaced(tmp_path), "demo", clock=clock).acquire()
    taken.clear()
    clock.now += 100
    assert StoreLease(Replaced(tmp_path), "demo", clock=clock).holder() == {"pid": 7, "host": "quick", "expires_at": clock.now + 60}


def test_a_lease_whose_first_answer_was_lost_is_ours(tmp_path: Path) -> None:
    class Retried(FolderStore):
        """S3's client asks again after an answer that was lost, and finds the key taken: by itself."""

        def create(self, key: str, data: bytes) -> bool:
            return super().create(key, data) and super().create(key, data)

    lease = StoreLease(Retried(tmp_path), "demo", clock=Clock())
    lease.acquire()
    assert lease.renew() is False
    lease.release()
    assert lease.holder() is None


def test_a_store_that_replaces_what_must_only_be_created_holds_no_run(tmp_path: Path) -> None:
    class Replacing(FolderStore):
        """Ignores the condition, as some S3-compatible stores do, and says that all is well."""

        def create(self, key: str, data: bytes) -> bool:
            self.write(key, data)
            return True

    lease = StoreLease(Replacing(tmp_path), "demo", clock=Clock())
    with pytest.raises(ConfigError, match=rf"root = {tmp_path} replaces an object that must only be created\. Use a store with"):
        lease.acquire()
    assert lease.holder() is None


def test_a_lease_is_taken_though_the_old_ones_cannot_be_removed(tmp_path: Path) -> None:
    class Failing(FolderStore):
        def delete(self, key: str) -> None:
            raise DependencyError("S3 does not answer")

    lease = StoreLease(Failing(tmp_path), "demo", clock=Clock(), identity={"pid": 1, "host": "a"})
    lease.acquire()
    assert lease.holder() is not None
    lease.release()
    assert lease.holder() is None


def test_a_clock_that_is_set_back_does_not_make_a_holder_deaf(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    clock.now = 7200.0
    lease, other = StoreLease(store, "demo", clock=clock), StoreLease(store, "demo", clock=clock)
    lease.acquire()
    clock.now = 3600.0
    assert other.request_stop() is True
    assert lease.renew() is True


def test_a_holder_is_asked_to_stop_through_the_store(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    lease, other = StoreLease(store, "demo", clock=clock), StoreLease(store, "demo", clock=clock)
    assert other.request_stop() is False
    lease.acquire()
    assert other.request_stop() is True
    clock.now += 25
    assert lease.renew() is True
    lease.release()
    assert other.holder() is None
    other.acquire()
    clock.now += 25
    assert other.renew() is False


def test_lease_after_lease_leaves_one_object(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for _ in range(3):
        lease = StoreLease(store, "demo")
        lease.acquire()
        lease.request_stop()
        lease.release()
    assert list(store.list("demo")) == ["demo/lease/3.json"]


def test_a_lease_whose_store_is_down_just_expires() -> None:
    store, clock = MemoryStore(), Clock()
    lease = StoreLease(store, "demo", clock=clock)
    lease.acquire()
    store.down = True
    lease.release()
    store.down = False
    clock.now += 61.0
    StoreLease(store, "demo", clock=clock).acquire()


def test_a_controller_may_wait_for_the_lease_but_not_for_ever(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    StoreLease(store, "demo", clock=clock, identity={"pid": 1, "host": "a"}).acquire()  # and then dies: free after 60 s
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds

    second = StoreLease(store, "demo", clock=clock)
    with pytest.raises(LeaseHeld):
        acquire_within(second, 5.0, clock, sleep)
    assert waits == [2.0, 2.0, 1.0]
    acquire_within(second, 300.0, clock, sleep)
    assert clock.now == pytest.approx(1061.0)


def test_a_wait_without_an_end_is_told_once(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    first = StoreLease(store, "demo", clock=clock, identity={"pid": 1, "host": "a"})
    first.acquire()
    until = clock.now + 3000.0

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now < until:
            first.renew()
        else:
            first.release()

    with capture_logs() as said:
        acquire_within(StoreLease(store, "demo", clock=clock), math.inf, clock, sleep)
    assert clock.now == pytest.approx(until, abs=2.0)
    assert [(line["event"], "process 1 on a" in line["reason"]) for line in said] == [("waiting for another controller", True)]
