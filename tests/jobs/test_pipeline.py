"""The whole pipeline through the command line: what a user relies on when runs are repeated, extended, changed or killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import REPOSITORY, copy_of, digests, iterate, itoolctl, small_settings

pytestmark = pytest.mark.slow


def stages_started(stderr: str) -> list[str]:
    return [line.split(":")[0] for line in stderr.splitlines() if ": starting" in line]


def test_a_run_gives_every_artifact_and_a_report(finished: Path) -> None:
    made = digests(finished)
    assert list(made) == ["i0/evaluate", "i0/prepare", "i0/warmup", "i1/dpo", "i1/evaluate", "i1/generate", "i1/score"]
    report = json.loads(itoolctl("report", "demo", "--output", "json", cwd=finished).stdout)
    assert [e["iteration"] for e in report["evaluations"] if e["dataset"] == "held_out"] == [0, 1]
    assert report["iterations"][0]["trees"] > 0
    assert report["best_iteration"] in (0, 1)


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    again = iterate(finished)
    assert stages_started(again.stderr) == []


def test_more_iterations_add_to_the_same_run(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path)
    before = digests(folder)
    extended = iterate(folder, n=2)
    after = digests(folder)
    assert {name: after[name] for name in before} == before
    assert stages_started(extended.stderr) == ["i2-score", "i2-generate", "i2-dpo", "i2-evaluate", "i2-report"]


def test_a_controller_killed_mid_training_ends_with_the_same_digests(finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "itool.cli.main", "iterate", "--n", "1", "--config", str(REPOSITORY / "configs/demo.yaml")]
    process = subprocess.Popen([*command, *small_settings()], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    wait_for_update(tmp_path / "runs/demo/logs", process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "iterate" in stderr.splitlines()[-1]
    assert "i0/warmup" not in digests(tmp_path)
    resumed = iterate(tmp_path)
    assert digests(tmp_path) == digests(finished)
    assert stages_started(resumed.stderr)[0] == "i0-warmup"


def wait_for_update(logs: Path, process: subprocess.Popen[str]) -> None:
    """Return when the warm-up has done its first updates."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any('"progress"' in path.read_text() for path in logs.glob("i0-warmup*")):
            return
        time.sleep(0.05)
    raise AssertionError("the warm-up made no progress")


def test_two_shards_find_the_trees_of_one_and_teach_the_same(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path)
    iterate(folder, search__shards=2)
    trees = {
        frozenset(json.loads(line)["example_id"] for line in path.read_text().splitlines())
        for path in (folder / "runs/demo/i1/generate").glob("*/*/trees.jsonl")
    }
    assert len(trees) == 1
    assert trees != {frozenset()}
    adapters = [path.read_bytes() for path in (folder / "runs/demo/i1/dpo").glob("*/*/adapter/adapter_model.safetensors")]
    assert len(adapters) == 2
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("method", ["best_of_n", "rejection_sampling", "sft_continued"])
def test_a_control_reuses_the_warm_up_and_trains_as_many_updates(finished: Path, tmp_path: Path, method: str) -> None:
    folder = copy_of(finished, tmp_path)
    done = iterate(folder, "--method", method, "--run", method.replace("_", "-"), reuse_from="demo")
    assert not {"i0-prepare", "i0-warmup", "i0-evaluate"} & set(stages_started(done.stderr))
    report = json.loads(itoolctl("report", method.replace("_", "-"), "--output", "json", cwd=folder).stdout)
    assert report["method"] == method
    assert report["iterations"][0]["updates"] == 3
    compared = itoolctl("compare", "demo", method.replace("_", "-"), "--output", "json", cwd=folder)
    assert json.loads(compared.stdout)


def test_a_buffer_without_ground_truth_text_is_learned_from_by_its_checker(finished: Path, tmp_path: Path) -> None:
    iterate(tmp_path, data__buffer_labels="checker", select__by="pass_rate", select__samples=4)
    pairs = next((tmp_path / "runs/demo/i1/generate").glob("*/*/pairs.jsonl")).read_text().splitlines()
    assert not any(json.loads(line)["injected"] for line in pairs)
    [scores] = scores_in(tmp_path)
    assert all(score["pass_rate"] is not None and score["perplexity"] is None for score in scores)


def test_scoring_by_pass_rate_measures_the_perplexity_beside_it(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path)
    [before] = scores_in(folder)
    command = [sys.executable, "-m", "jobs.score", "--config", str(REPOSITORY / "configs/demo.yaml"), "--iteration", "1"]
    subprocess.run([*command, *small_settings(select__by="pass_rate", select__samples=2)], cwd=folder, check=True, capture_output=True)
    [after] = [scores for scores in scores_in(folder) if scores != before]
    known = {score["example_id"]: score["perplexity"] for score in before}
    assert {score["example_id"]: score["perplexity"] for score in after} == pytest.approx(
        {score["example_id"]: known[score["example_id"]] for score in after}, rel=1e-4
    )
    assert {score["pass_rate"] for score in after} <= {0.0, 0.5, 1.0}
    chosen = [score["pass_rate"] for score in after if score["selected"] and score["stratum"] == "calls"]
    assert max(chosen) <= min(score["pass_rate"] for score in after if not score["selected"] and score["stratum"] == "calls")


def scores_in(folder: Path) -> list[list[dict[str, Any]]]:
    """The records of every `score` artifact of iteration 1."""
    files = sorted((folder / "runs/demo/i1/score").glob("*/*/scores.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
