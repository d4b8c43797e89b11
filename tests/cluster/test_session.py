"""A run put together: what a stop finds, and where a run in an object store keeps its own files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from itool.artifacts.store import FolderStore
from itool.cluster.leases import FolderLease
from itool.cluster.progress import NoWatcher
from itool.cluster.session import NotStarted, StopRequest, _iterate_here, controller_signals, iterate, local_runner
from itool.config import RunConfig, RuntimeConfig
from itool.errors import DependencyError, Interrupted, StorageError
from tests.fakes.ctrl_c import ctrl_c_when_heard
from tests.fakes.jobs_path import fake_jobs_environment
from tests.fakes.memory_store import MemoryStore


def test_ctrl_c_while_another_controller_works_leaves_it_alone(tmp_path: Path) -> None:
    other = FolderLease(tmp_path / "demo" / "controller.lock")
    other.acquire()
    with ctrl_c_when_heard(), pytest.raises(NotStarted, match="other controller, which is left alone; nothing was started"):
        iterate(RunConfig(root=str(tmp_path)), wait_lease_seconds=30.0)
    other.release()


def test_a_second_ctrl_c_does_not_wait_for_checkpoints() -> None:
    killed: list[str] = []
    with controller_signals() as stop:
        stop.on_second = lambda: killed.append("all")
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop(), killed) == (True, [])
        os.kill(os.getpid(), signal.SIGINT)
    assert killed == ["all"]


def test_ctrl_c_is_heard_while_stages_of_a_dead_controller_still_stop(tmp_path: Path) -> None:
    dead = FolderLease(tmp_path / "demo" / "controller.lock")
    dead.acquire()
    stage = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], pass_fds=dead.inherited)
    dead.release()
    dead.path.write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ctrl_c_when_heard(), pytest.raises(NotStarted):
        iterate(RunConfig(root=str(tmp_path)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    stage.kill()
    stage.wait()


def test_a_disk_that_does_not_take_the_local_copy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "full"))
    with pytest.raises(StorageError, match=r"cannot use .*/full/itool"):
        local_runner(RunConfig(root="s3://bucket/runs"), MemoryStore(), ())


@dataclass
class LeaseInAStore:
    """Somebody asks to stop when `asked`; from then on its store is away."""

    asked: Callable[[], bool]
    renewals_while_stopping: int = 0
    inherited: tuple[int, ...] = ()
    _stopping: bool = False

    def acquire(self) -> None:
        """Free."""

    def renew(self) -> bool:
        if self._stopping:
            self.renewals_while_stopping += 1
            raise DependencyError("S3 does not answer")
        self._stopping = self.asked()
        return self._stopping

    def release(self) -> None:
        """Nothing is held."""


def test_the_lease_is_kept_while_stages_save_their_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"prepare": ["hang"]}))
    for name, value in {**fake_jobs_environment(), "FAKE_SCRIPT": str(tmp_path / "script.json"), "FAKE_PIDS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    config, store = RunConfig(root=str(tmp_path), runtime=RuntimeConfig(warm_start=False)), FolderStore(tmp_path)
    store.write("demo/config.yaml", config.as_yaml().encode())
    lease = LeaseInAStore(lambda: any(path.name.isdigit() for path in tmp_path.iterdir()))
    with pytest.raises(Interrupted):
        _iterate_here(config, store, lease, NoWatcher(), stop=StopRequest())
    assert lease.renewals_while_stopping > 0
    [log] = tmp_path.glob("demo/logs/i0-prepare-1.log")
    assert "stopped after checkpoint 1" in log.read_text()
