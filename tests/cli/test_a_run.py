"""A run from its start over Ctrl-C, faults and kills to its end, and what can be asked of it then."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Itoolctl, one_line
from tests.fakes.waiting import wait_until

COLD = ("--set", "runtime.warm_start=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Itoolctl:
    """A finished run of one iteration. Tests must not change it."""
    made = Itoolctl(tmp_path_factory.mktemp("finished"))
    done = made("iterate", "--n", "1", "--set", "search.shards=2", *COLD)
    assert done.returncode == 0, done.stderr
    assert "iteration 1" in done.stdout
    assert "<- kept" in done.stdout
    assert "i1-generate-1: done in" in done.stderr
    return made


@pytest.mark.slow
def test_a_finished_run_is_a_quick_no_op(finished: Itoolctl) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = finished("iterate", "--run", "demo")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of computing: a busy machine does not count
    assert done.returncode == 0
    assert "Nothing to do: all 8 stages of run demo are up to date" in done.stderr
    assert seconds < 3.0


@pytest.mark.slow
def test_json_goes_to_stdout_alone(finished: Itoolctl) -> None:
    assert json.loads(finished("iterate", "--run", "demo", "--output", "json").stdout)["best_iteration"] == 1
    assert json.loads(finished("report", "-o", "json").stdout)["run"] == "demo"
    status = json.loads(finished("status", "demo", "-o", "json").stdout)
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    assert status["controller"] is None
    [run] = json.loads(finished("runs", "-o", "json").stdout)
    assert (run["run"], run["state"], run["iterations_done"], run["done"], run["stages"]) == ("demo", "done", 1, 8, 8)
    assert (run["best_iteration"], run["best_accuracy"], run["controller"]) == (1, 0.6, None)
    assert len(json.loads(finished("artifacts", "ls", "-o", "json").stdout)) == 8
    assert json.loads(finished("stages", "-o", "json").stdout)[0]["name"] == "prepare"
    assert "properties" in json.loads(finished("schema").stdout)
    assert "serviceAccounts" in json.loads(finished("schema", "--chart").stdout)["properties"]


@pytest.mark.slow
def test_plan_says_which_stages_a_changed_setting_reruns(finished: Itoolctl) -> None:
    done = finished("plan", "--run", "demo", "--set", "dpo.beta=0.2", "-o", "json")
    due = {
        f"i{stage['iteration']}/{stage['name']}": stage["reason"] for stage in json.loads(done.stdout)["stages"] if stage["action"] == "run"
    }
    assert list(due) == ["i1/dpo", "i1/evaluate", "i1/report"]
    assert due["i1/dpo"] == "dpo.beta 0.1 -> 0.2"
    assert "3 of 8 stages to run, 5 reused" in finished("plan", "--run", "demo", "--set", "dpo.beta=0.2").stdout
    assert "Nothing to run" in finished("plan", "--run", "demo").stdout


@pytest.mark.slow
def test_logs_are_found_afterwards(finished: Itoolctl) -> None:
    done = finished("logs", "score")
    assert '"event": "stage finished"' in done.stdout
    sharded = finished("logs", "i1/generate")
    assert "== i1-generate-1-1.log" in sharded.stderr
    none = finished("logs", "score", "--iteration", "7", "--shard", "2")
    assert none.returncode == 65
    assert one_line(none.stderr).startswith("itoolctl: run demo has no log of score, iteration 7, shard 2. ")


@pytest.mark.slow
def test_artifacts_are_verified_copied_and_a_flipped_byte_is_found(itoolctl: Itoolctl) -> None:
    itoolctl("iterate", "--n", "0", *COLD)
    assert "4 artifacts are whole" in itoolctl("artifacts", "verify").stderr
    got = itoolctl("artifacts", "get", "demo/i0/warmup", "copy", "adapter/")
    assert Path(itoolctl.folder, got.stdout.strip()).is_file()
    [file] = itoolctl.folder.glob("runs/demo/i0/warmup/*/*/training.jsonl")
    file.write_bytes(b"!" + file.read_bytes()[1:])
    done = itoolctl("artifacts", "verify", "demo")
    assert done.returncode == 65
    assert "training.jsonl was altered" in done.stdout
    name = done.stdout.partition(": ")[0]
    assert f"1 problem in 1 of 4 artifacts. Remove with `itoolctl artifacts rm {name}`" in one_line(done.stderr)
    found = json.loads(itoolctl("artifacts", "verify", "demo", "-o", "json").stdout)
    assert [entry["artifact"] for entry in found if entry["problems"]] == [name]
    assert len(found) == 4
    assert itoolctl("artifacts", "rm", name).returncode == 0
    assert itoolctl("iterate", "--run", "demo", *COLD).returncode == 0
    assert "4 artifacts are whole" in itoolctl("artifacts", "verify").stderr


@pytest.mark.slow
def test_a_failing_stage_gives_its_exit_code_and_status_says_why(itoolctl: Itoolctl) -> None:
    itoolctl.script(warmup=["exit 65"])
    done = itoolctl("iterate", "--n", "0", *COLD)
    assert done.returncode == 65
    assert done.stderr.splitlines()[-1] == "itoolctl: i0/warmup failed: told to end with 65"
    assert "told to end with 65" in itoolctl("status").stdout
    itoolctl.script()
    assert itoolctl("iterate", "--run", "demo").returncode == 0


@pytest.mark.slow
def test_ctrl_c_stops_after_a_checkpoint_and_says_how_to_resume(itoolctl: Itoolctl) -> None:
    itoolctl.script(warmup=["hang", "ok"])
    process = itoolctl.open("iterate", "--n", "0", *COLD)
    wait_until(lambda: bool(itoolctl.stage_pids()))
    status = json.loads(itoolctl("status", "-o", "json").stdout)
    assert status["controller"]["pid"] == process.pid
    assert [stage["state"] for stage in status["stages"]][:2] == ["done", "running"]
    second = itoolctl("iterate", "--n", "0", *COLD)
    assert second.returncode == 69
    assert f"run demo is held by another controller (process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "i0-warmup: stopped after " in stderr
    assert stderr.splitlines()[-1] == f"itoolctl: run demo stopped. Resume with: itoolctl iterate --n 0 {' '.join(COLD)}"
    assert itoolctl("iterate", "--n", "0", *COLD).returncode == 0


@pytest.mark.slow
def test_cancel_stops_a_run(itoolctl: Itoolctl) -> None:
    itoolctl.script(prepare=["hang"])
    process = itoolctl.open("iterate", "--n", "0", *COLD)
    wait_until(lambda: bool(itoolctl.stage_pids()))
    assert "Run demo has stopped" in itoolctl("cancel").stderr
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Nothing works on run demo" in itoolctl("cancel").stderr


@pytest.mark.slow
def test_a_killed_controller_leaves_no_stage_behind_and_the_next_one_finishes(itoolctl: Itoolctl) -> None:
    itoolctl.script(warmup=["hang", "ok"])
    process = itoolctl.open("iterate", "--n", "0", *COLD)
    wait_until(lambda: bool(itoolctl.stage_pids()))
    process.kill()
    process.communicate()
    done = itoolctl("iterate", "--n", "0", *COLD)
    assert done.returncode == 0, done.stderr
    [pid] = itoolctl.stage_pids()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_the_root_comes_from_the_environment(finished: Itoolctl, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "itool.cli.main", "runs"],
        cwd=tmp_path,
        env=finished.environment | {"ITOOL_ROOT": str(finished.folder / "runs")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1].startswith("demo")
