"""What the job's main makes of errors that libraries raise in their own words."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from itool.artifacts.process import StopFlag, as_itool_error, gpus_in_use, parse_arguments
from itool.artifacts.stage import Stage
from itool.errors import ConfigError, Interrupted, ItoolError, StorageError
from tests.artifacts.conftest import Run


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_does_not_change_the_exit_code() -> None:
    fails = "import sys; from itool.artifacts.process import exit_code_of; sys.exit(exit_code_of(OSError(28, 'full')))"
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([sys.executable, "-c", fails], stderr=full, check=False).returncode == StorageError.exit_code


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0: PytorchStreamWriter failed writing file data/0"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 380224 vs 380116"),  # torch, at the end of a file
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),  # copytree
    ],
)
def test_a_full_disk_is_one_error_whoever_reports_it(error: Exception) -> None:
    known = as_itool_error(error)
    assert isinstance(known, StorageError)
    assert "No space left" in str(known)


def test_a_message_that_ends_in_a_full_stop_gets_no_second_one() -> None:
    assert str(ItoolError("The hub is offline.", remedy="Go online")) == "The hub is offline. Go online"


def test_other_numbers_and_types_stay_what_they_are() -> None:
    assert type(as_itool_error(RuntimeError("connection refused (os error 111)"))) is ItoolError
    assert isinstance(as_itool_error(KeyboardInterrupt()), Interrupted)


def test_only_a_later_ctrl_c_does_not_wait_for_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends Ctrl-C to all its processes, and the controller then SIGTERM to the stage."""
    now, stop = 100.0, StopFlag()
    monkeypatch.setattr("time.monotonic", lambda: now)

    def forces(number: int) -> bool:
        try:
            stop.handle(number, None)
        except KeyboardInterrupt:
            return True
        return False

    assert (forces(signal.SIGINT), forces(signal.SIGINT), bool(stop)) == (False, False, True)
    now += 30.0
    assert (forces(signal.SIGTERM), forces(signal.SIGINT)) == (False, True)


@pytest.mark.parametrize(("rank", "objects"), [("0", 2), ("1", 0)])
def test_of_several_workers_the_first_alone_commits(folder_run: Run, monkeypatch: pytest.MonkeyPatch, rank: str, objects: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert folder_run.stage("prepare", lambda stage: stage.write_json("x.json", 1)) == 0
    assert len(folder_run.store.list("")) == objects


def test_a_stage_leaves_the_folder_of_one_that_runs_beside_it_alone(folder_run: Run) -> None:
    def body(stage: Stage) -> None:
        stage.write_json("x.json", 1)
        assert folder_run.stage("prepare", lambda beside: beside.write_json("x.json", 2)) == 0
        assert (stage.output / "x.json").exists()

    assert folder_run.stage("prepare", body) == 0


def test_a_pod_of_an_indexed_job_does_the_shard_of_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert parse_arguments("generate", ["--shards", "4"]).shard == 3
    assert parse_arguments("generate", ["--shards", "4", "--shard", "1"]).shard == 1
    assert parse_arguments("dpo", []).shard == 0  # a pod of a training that spans nodes has an index too
    with pytest.raises(ConfigError, match="--shard 3 is not one of 2 shards"):
        parse_arguments("generate", ["--shards", "2"])


def test_a_worker_computes_on_one_gpu_however_many_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 8)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert gpus_in_use() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert gpus_in_use() == 4
