"""A run as `itoolctl runs` lists it, on this machine; tests/cli/test_cluster_commands.py has one in a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from itool.artifacts.manifest import Manifest
from itool.artifacts.resolve import Resolution
from itool.artifacts.store import FolderStore
from itool.cluster.client import Cluster
from itool.cluster.controller import Controller
from itool.cluster.leases import FolderLease
from itool.cluster.session import open_lease
from itool.config import RunConfig
from itool.operations.run_list import RunLine, best_so_far, run_line
from itool.operations.run_status import StatusReader
from itool.stages import StageId
from tests.cluster.in_memory_runner import InMemoryRunner

WHEN = datetime(2026, 11, 21, tzinfo=UTC)


def no_cluster() -> Cluster:
    raise AssertionError("nothing of this run lies in a cluster")


def test_a_line_says_the_word_that_status_says(tmp_path: Path) -> None:
    config, store = RunConfig(root=str(tmp_path), iterations=1), FolderStore(tmp_path)
    runner = InMemoryRunner(store, config)
    controller = Controller(config, store, runner, FolderLease(tmp_path / "lock"))

    def line() -> RunLine:
        found = run_line(config, store, no_cluster)
        assert found.state == StatusReader(config, store).read().state
        return found

    while len(runner.started) < 4:
        controller.step()
    assert (line().state, line().done, line().stages, line().iterations_done) == ("stopped", 3, 8, 0)
    lease = open_lease(store, config.run)
    lease.acquire()
    assert line().state == "running"
    lease.release()
    [rows] = store.path(f"{config.run}/i0/warmup").rglob("rows.jsonl")
    rows.unlink()
    assert line().state == "failed"


def evaluated(iteration: int, **metrics: float) -> tuple[StageId, Resolution]:
    stage = StageId(iteration, "evaluate")
    made = Manifest(run="r", iteration=iteration, stage="evaluate", key="k" * 16, files={}, started=WHEN, ended=WHEN, metrics=dict(metrics))
    return stage, Resolution(stage, "done", "", manifest=made)


def prepared(validation: int) -> tuple[StageId, Resolution]:
    stage, metrics = StageId(0, "prepare"), {"examples": {"validation": validation}}
    made = Manifest(run="r", iteration=0, stage="prepare", key="k" * 16, files={}, started=WHEN, ended=WHEN, metrics=metrics)
    return stage, Resolution(stage, "done", "", manifest=made)


def test_the_best_is_what_a_report_would_keep_with_its_held_out_accuracy() -> None:
    scores = dict([prepared(100), evaluated(0, held_out=0.5, validation=0.5), evaluated(1, held_out=0.6, validation=0.7)])
    near = scores | dict([evaluated(2, held_out=0.55, validation=0.66)])  # a standard error of 0.7 on 100 examples is 0.046
    far = scores | dict([evaluated(2, held_out=0.55, validation=0.65)])
    assert (best_so_far(near), best_so_far(far)) == ((2, 0.55), (1, 0.6))


def test_without_a_validation_set_it_is_the_last_and_before_any_evaluation_none() -> None:
    assert best_so_far(dict([prepared(0), evaluated(0, held_out=0.5), evaluated(1, held_out=0.4)])) == (1, 0.4)
    assert best_so_far(dict([prepared(0)])) is None
