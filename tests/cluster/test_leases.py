"""One controller per run at a time."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from itool.artifacts.store import FolderStore
from itool.cluster.leases import FolderLease, LeaseHeld, StoreLease, acquire_within
from itool.errors import DependencyError, StorageError


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


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(StorageError, match="demo"):
        FolderLease(tmp_path / "demo" / "lock").acquire()


def test_a_lock_that_cannot_be_read_does_not_say_that_nobody_holds_the_run(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert FolderLease(lock).holder() is None
    lock.symlink_to(lock)  # root, too, fails to open it
    with pytest.raises(StorageError, match=f"cannot use {lock}: Too many levels of symbolic links"):
        FolderLease(lock).holder()


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
