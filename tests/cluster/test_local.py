"""Stages as processes: how they start, fail, stop, and never outlive their controller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from itool.cli.display import ending
from itool.cluster.local import LauncherProcess, LocalRunner, explain_end
from itool.cluster.progress import ProgressTail
from itool.cluster.runner import Attempt, Task
from itool.config import PolicyConfig, RunConfig, RuntimeConfig
from itool.errors import DependencyError, Interrupted, StorageError
from itool.stages import StageId
from tests.fakes.jobs_path import fake_jobs_environment
from tests.fakes.waiting import lives, wait_until

PREPARE = Task(StageId(0, "prepare"), "key")


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["cold", "warm"])
def runner(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalRunner]:
    """A runner of fake stages; the warm one preloads nothing heavy."""
    for name, value in fake_jobs_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_SCRIPT", str(tmp_path / "script.json"))
    monkeypatch.setenv("FAKE_PIDS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = RunConfig(root=str(tmp_path / "runs"), runtime=RuntimeConfig(warm_start=request.param))
    (tmp_path / "config.yaml").write_text(config.as_yaml())
    made = LocalRunner(config, tmp_path / "config.yaml", tmp_path / "logs", warm_modules=("itool.artifacts.stage",))
    if request.param:
        made.warm_up()
        wait_until(lambda: made._launchers[True].ready or bool(made.state()))
    yield made
    made.close()


def script(folder: Path, **directives: list[str]) -> None:
    (folder / "script.json").write_text(json.dumps(directives))


def run_once(runner: LocalRunner, attempt: int = 1) -> Attempt:
    runner.start(PREPARE, attempt)
    wait_until(lambda: runner.state()[PREPARE][-1].over)
    return runner.state()[PREPARE][-1]


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


@pytest.mark.parametrize("started", [False, True], ids=["idle", "with a stage that waits for it"])
def test_a_launcher_that_still_imports_is_not_waited_for(started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imports_for_long.py").write_text("import time\ntime.sleep(30)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    config = RunConfig(root=str(tmp_path / "runs"))
    runner = LocalRunner(config, tmp_path / "config.yaml", tmp_path / "logs", warm_modules=("imports_for_long",))
    runner.warm_up()
    process = runner._launchers[True].process
    warmup = Task(StageId(0, "warmup"), "key")
    if started:
        runner.start(warmup, 1)
        assert runner.log_path(warmup, 1).read_bytes() == b""  # what `status` looks for
    begun = time.monotonic()
    runner.cancel(20.0)
    runner.close()
    assert time.monotonic() - begun < 15.0
    assert process.poll() is not None
    if started:
        attempt = runner.state()[warmup][-1]
        assert (attempt.phase, attempt.exit_code) == ("failed", Interrupted.exit_code)
        assert ending(warmup, attempt) == "i0-warmup: stopped before it began"


@dataclass
class ScriptedLauncher:
    """Reports a batch of ended attempts at each look."""

    batches: list[list[str]]
    requests: list[dict[str, Any]] = field(default_factory=list)
    ready: bool = True
    gone: bool = False

    def events(self) -> list[dict[str, Any]]:
        names = self.batches.pop(0) if self.batches else []
        return [{"event": "ended", "id": name, "status": 75, "peak_memory_bytes": 0} for name in names]

    def request(self, message: dict[str, Any]) -> None:
        self.requests.append(message)


def two_running_shards(folder: Path, batches: list[list[str]]) -> tuple[LocalRunner, ScriptedLauncher]:
    """`i1-generate-0-1` and `i1-generate-1-1`."""
    made, launcher = LocalRunner(RunConfig(), folder / "config.yaml", folder), ScriptedLauncher(batches)
    made._launchers[True] = launcher
    for task in (Task(StageId(1, "generate"), "key", shard, 2) for shard in (0, 1)):
        made._started_by[f"{task.label}-1"] = (task, 1, True)
        made._attempts[task] = [Attempt(1, "running")]
    return made, launcher


def store_is_away(*_log: object) -> None:
    raise DependencyError("S3 does not answer")


def test_a_log_that_the_store_does_not_take_loses_no_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = two_running_shards(tmp_path, [["i1-generate-0-1", "i1-generate-1-1"]])
    made.on_ended = store_is_away
    assert [attempts[-1].exit_code for attempts in made.state().values()] == [75, 75]
    assert "i1-generate-1-1.log" in capsys.readouterr().out


def test_a_stop_reaches_every_stage_while_the_store_is_away(tmp_path: Path) -> None:
    made, launcher = two_running_shards(tmp_path, [["i1-generate-0-1"], ["i1-generate-1-1"]])
    made.on_ended = store_is_away
    made.detach(5.0)
    assert [(request["id"], request["signal"]) for request in launcher.requests] == [("i1-generate-1-1", signal.SIGTERM)]
    assert all(attempts[-1].over for attempts in made.state().values())


def test_attempts_of_iterations_that_are_finished_are_forgotten(tmp_path: Path) -> None:
    made, launcher = LocalRunner(RunConfig(), tmp_path / "config.yaml", tmp_path), ScriptedLauncher([])
    made._launchers[True] = launcher
    for iteration in range(1, 6):
        task = Task(StageId(iteration, "score"), "key")
        made.start(task, 1)
        launcher.batches.append([f"{task.label}-1"])
        made.state()
    assert [task.stage.iteration for task in made.state()] == [4, 5]
    assert len(made._log_starts) == 2


def test_a_folder_for_logs_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file")
    made = LocalRunner(RunConfig(), tmp_path / "config.yaml", tmp_path / "full" / "logs")
    with pytest.raises(StorageError, match=r"cannot use .*/full/logs"):
        made.start(PREPARE, 1)


def test_a_launcher_that_cannot_be_started_leaves_no_socket(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StorageError):
        LauncherProcess.open((), tmp_path / "nowhere" / "launcher.log", (), {})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_stage_runs_and_its_log_has_progress(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path)
    ended = run_once(runner)
    assert (ended.phase, ended.exit_code, ended.reason) == ("succeeded", 0, "")
    assert ended.peak_memory_bytes > 1 << 20
    assert list(tmp_path.glob("runs/demo/i0/prepare/*/manifest.json"))
    progress = ProgressTail().read(runner, PREPARE, 1)
    assert progress is not None
    assert (progress.done, progress.total, progress.unit, progress.figures["loss"]) == (2.0, 2.0, "examples", 0.4)


def test_exit_codes_and_the_last_line_come_back(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["exit 65", "exit 69", "ok"])
    assert [run_once(runner, number).exit_code for number in (1, 2, 3)] == [65, 69, 0]
    assert runner.state()[PREPARE][0].reason == "told to end with 65"


def test_a_killed_stage_says_so(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["kill"])
    ended = run_once(runner)
    assert (ended.exit_code, ended.reason) == (137, "killed by signal 9 (out of memory, or by hand)")


def test_a_bug_leaves_its_traceback_in_the_log(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["crash"])
    assert run_once(runner).reason == "RuntimeError: a bug"
    assert b"Traceback" in runner.logs(PREPARE, 1)


def test_cancel_lets_a_stage_save_a_checkpoint(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["hang"])
    runner.start(PREPARE, 1)
    wait_until(lambda: bool(pids(tmp_path)))
    runner.cancel(30.0)
    assert runner.state()[PREPARE][-1].exit_code == 75


def test_cancel_kills_a_stage_that_does_not_listen(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["stubborn"])
    runner.start(PREPARE, 1)
    wait_until(lambda: bool(pids(tmp_path)))
    runner.cancel(0.2)
    assert runner.state()[PREPARE][-1].exit_code == 137
    assert not any(lives(pid) for pid in pids(tmp_path))


def test_what_a_stage_has_started_ends_with_it(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["leave"])
    assert run_once(runner).exit_code == 0
    wait_until(lambda: not any(lives(pid) for pid in pids(tmp_path)), 10.0)


def test_a_dead_launcher_takes_its_stages_along_and_is_replaced(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["stubborn", "ok"])
    runner.start(PREPARE, 1)
    wait_until(lambda: bool(pids(tmp_path)))
    for launcher in runner._launchers.values():
        os.kill(launcher.process.pid, signal.SIGKILL)
    wait_until(lambda: runner.state()[PREPARE][-1].over)
    assert "the process that starts stages has died" in runner.state()[PREPARE][-1].reason
    wait_until(lambda: not any(lives(pid) for pid in pids(tmp_path)))
    assert run_once(runner, 2).exit_code == 0


def test_stages_stop_when_the_controller_is_killed(runner: LocalRunner, tmp_path: Path) -> None:
    """The kernel closes a killed controller's sockets; hanging up does the same."""
    script(tmp_path, prepare=["hang"])
    runner.start(PREPARE, 1)
    wait_until(lambda: bool(pids(tmp_path)))
    runner.close()
    assert not any(lives(pid) for pid in pids(tmp_path))
    assert b"stopped after checkpoint 1" in runner.logs(PREPARE, 1)


def test_an_earlier_log_of_the_same_number_is_kept_but_not_read(runner: LocalRunner, tmp_path: Path) -> None:
    script(tmp_path, prepare=["exit 1"])
    (tmp_path / "logs").mkdir(exist_ok=True)
    runner.log_path(PREPARE, 1).write_text("from an earlier life\n")
    run_once(runner)
    assert b"earlier" not in runner.logs(PREPARE, 1)
    assert "earlier" in runner.log_path(PREPARE, 1).read_text()


def test_shards_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(runtime=RuntimeConfig(threads=8))
    made = LocalRunner(config, tmp_path / "config.yaml", tmp_path)
    assert [made._threads(Task(StageId(1, "generate"), "key", 0, shards)) for shards in (1, 3, 16)] == [8, 2, 1]
    alone = LocalRunner(config.model_copy(update={"policy": PolicyConfig(backend="vllm")}), tmp_path / "config.yaml", tmp_path)
    assert alone._threads(Task(StageId(1, "generate"), "key", 0, 3)) == 8, "one vLLM at a time"
    overlapping = RunConfig(iterations=2, runtime=RuntimeConfig(threads=8, overlap_evaluation=True))
    made = LocalRunner(overlapping, tmp_path / "config.yaml", tmp_path)
    stages = [StageId(1, "score"), StageId(1, "dpo"), StageId(1, "evaluate"), StageId(2, "evaluate")]
    assert [made._threads(Task(stage, "key")) for stage in stages] == [4, 8, 4, 8]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert LocalRunner(RunConfig(), tmp_path / "config.yaml", tmp_path)._threads(PREPARE) == 5


def test_the_allocator_is_told_before_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    environment = LocalRunner(RunConfig(), tmp_path / "config.yaml", tmp_path)._environment()
    assert environment["MALLOC_MMAP_THRESHOLD_"] == str(1 << 30)
    assert environment["MALLOC_TOP_PAD_"] == "1"


def test_the_end_of_a_log_becomes_one_line() -> None:
    assert explain_end(1, b"Traceback:\nerror: row 3 has no tools\n\n") == "row 3 has no tools"
    assert explain_end(1, b'{"event": "stage failed", "error": "disk is full"}\n') == "disk is full"
    assert explain_end(-15, b"") == "ended by SIGTERM"
    assert explain_end(1, b"") == ""
    assert explain_end(1, b"[" * 9000) == "[" * 9000, "what a model has said, say"
    assert explain_end(74, b"error: cannot use /data: full\n") == "cannot use /data: full"
    assert explain_end(74, b'{"event": "update 3 of 40"}\n').startswith("the disk is full")


def test_the_controller_never_imports_torch() -> None:
    code = "import sys, itool.cluster.session, itool.cli.main; assert not {'torch', 'transformers', 'boto3'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=fake_jobs_environment()).returncode == 0
