"""Training stages as several processes, started as a pod starts them: equal results, one writer, one end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from itool.artifacts.stage import Stage, run_stage
from tests.fakes.waiting import wait_until
from tests.jobs.conftest import REPOSITORY, copy_of, digests
from tests.train.workers import free_port

SETTINGS = {"data.count": 120, "data.held_out_count": 10, "warmup.epochs": 1, "warmup.batch_examples": 8, "runtime.threads": 1}
THREADS = {"OMP_NUM_THREADS": "1"}
"""As a pod has it. Without it accelerate takes every core, and sums in another order."""
JOB = ["--config", str(REPOSITORY / "configs/demo.yaml"), *(f for key, value in SETTINGS.items() for f in ("--set", f"{key}={value}"))]
ACCELERATE = ["accelerate", "--num_processes", "2", "--num_machines", "1", "--multi_gpu", "--mixed_precision", "no"]
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2"]


def start(folder: Path, *launcher: str, log: str = "log", job: list[str] | None = None) -> subprocess.Popen[bytes]:
    """Start the warm-up below `folder` by a launcher; its output goes to `log`."""
    command = [sys.executable, "-m", "itool.train.launch", *launcher, "-m", "jobs.warmup", *(JOB if job is None else job)]
    with (folder / log).open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=os.environ | THREADS, stdout=output, stderr=output)


def wait_for_progress(processes: list[subprocess.Popen[bytes]], *logs: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if any('"progress"' in log.read_text() for log in logs):
            return
        time.sleep(0.05)
    raise AssertionError("the warm-up made no progress:\n" + "\n".join(log.read_text() for log in logs))


def wait_for_torch(pid: int) -> None:
    """Return when the process has imported torch."""
    wait_until(lambda: "libtorch_python" in Path(f"/proc/{pid}/maps").read_text(), seconds=60)


def adapter(folder: Path) -> Path:
    [path] = folder.glob("runs/demo/i0/warmup/*/*/adapter/adapter_model.safetensors")
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    subprocess.run([sys.executable, "-m", "jobs.prepare", *JOB], cwd=folder, env=os.environ | THREADS, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def by_two(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_of(prepared, tmp_path_factory.mktemp("by-two"))
    process = start(folder, *ACCELERATE)
    assert process.wait(timeout=200) == 0, (folder / "log").read_text()
    return folder


@pytest.mark.slow
def test_two_processes_of_a_pod_train_the_adapter_of_one(prepared: Path, by_two: Path, tmp_path: Path) -> None:
    alone = copy_of(prepared, tmp_path)
    subprocess.run([sys.executable, "-m", "jobs.warmup", *JOB], cwd=alone, env=os.environ | THREADS, check=True, capture_output=True)
    one, two = load_file(adapter(alone)), load_file(adapter(by_two))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    log = (by_two / "log").read_text()
    assert [log.count(event) for event in ("stage started", "stage finished")] == [1, 1]
    assert not (by_two / "runs/.work").exists()


@pytest.mark.slow
def test_two_nodes_stop_together_and_end_with_the_adapter_of_one_pod(prepared: Path, by_two: Path, tmp_path: Path) -> None:
    folder = copy_of(prepared, tmp_path)
    nodes = f"torchrun --nnodes 2 --rdzv-backend c10d --rdzv-id demo --rdzv-endpoint 127.0.0.1:{free_port()}".split()
    both = [start(folder, *nodes, log=log) for log in ("a", "b")]
    wait_for_progress(both, folder / "a", folder / "b")
    both[1].send_signal(signal.SIGTERM)
    first, second = (process.wait(timeout=60) for process in both)
    assert second == 75, (folder / "b").read_text()
    assert first in (75, 69), (folder / "a").read_text()  # 69: it saw the other's rendezvous gone before its own workers' end
    assert (folder / "a").read_text().count("interrupted: training stopped after update") == 1
    assert len(list(folder.glob("runs/demo/i0/warmup/*/checkpoints/*/checkpoint.json"))) == 1
    assert "i0/warmup" not in digests(folder)

    both = [start(folder, *nodes, log=log) for log in ("a", "b")]
    assert [process.wait(timeout=120) for process in both] == [0, 0], (folder / "a").read_text()
    assert "checkpoint resumed" in (folder / "a").read_text() + (folder / "b").read_text()
    assert digests(folder) == digests(by_two)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_waits_for_the_other_can_be_stopped_and_does_not_wait_for_ever(tmp_path: Path, rank: int) -> None:
    node = f"torchrun --nnodes 2 --node-rank {rank} --master-addr 127.0.0.1 --master-port {free_port()} --rdzv-conf".split()
    given_up = start(tmp_path, *node, "timeout=2", log="given-up")
    assert given_up.wait(timeout=60) == 69
    assert "error: the other nodes did not come" in (tmp_path / "given-up").read_text()
    stopped = start(tmp_path, *node, "timeout=100", log="stopped")
    wait_for_torch(stopped.pid)
    time.sleep(3)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=20) == 75


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_pod_with_its_exit_code(prepared: Path, tmp_path: Path) -> None:
    folder = copy_of(prepared, tmp_path)
    process = start(folder, *TORCHRUN)
    wait_for_progress([process], folder / "log")
    psutil.Process(process.pid).children()[1].kill()
    assert process.wait(timeout=60) == 128 + signal.SIGKILL
    assert "i0/warmup" not in digests(folder)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN])
def test_a_launcher_ends_with_the_exit_code_of_its_workers(tmp_path: Path, launcher: list[str]) -> None:
    process = start(tmp_path, *launcher, job=["--config", "missing.yaml"])
    assert process.wait(timeout=60) == 64
    assert "error: configuration file missing.yaml does not exist" in (tmp_path / "log").read_text()


def test_a_worker_beside_the_first_runs_the_body_but_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"run": "demo", "root": str(tmp_path / "runs")}))
    ran = []

    def prepare(stage: Stage) -> None:
        ran.append(stage.rank)
        stage.write_json("x.json", 1)

    def run(rank: int) -> int:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        return run_stage("prepare", prepare, ["--config", str(tmp_path / "run.yaml")])

    assert run(1) == 0
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.glob("runs/demo/i0/**/manifest.json"))
    assert run(0) == 0
    assert list(digests(tmp_path)) == ["i0/prepare"]
    assert ran == [1, 0]
