"""A run on this machine, as status reads it from the store and the log files."""

from __future__ import annotations

from pathlib import Path

from itool.artifacts.store import FolderStore
from itool.cluster.controller import Controller
from itool.cluster.leases import FolderLease
from itool.cluster.session import open_lease
from itool.config import RunConfig, RuntimeConfig
from itool.operations.run_status import StatusReader
from tests.cluster.in_memory_runner import InMemoryRunner


def test_stages_that_run_side_by_side_both_run(tmp_path: Path) -> None:
    config, store = RunConfig(root=str(tmp_path), iterations=1, runtime=RuntimeConfig(overlap_evaluation=True)), FolderStore(tmp_path)
    runner = InMemoryRunner(store, config)
    controller = Controller(config, store, runner, FolderLease(tmp_path / "lock"))
    while len(runner.started) < 4:
        controller.step()
    logs = tmp_path / config.run / "logs"
    logs.mkdir()
    for name, done in (("i0-evaluate-1", 30), ("i1-score-2", 7)):
        (logs / f"{name}.log").write_text(f'{{"event": "progress", "done": {done}, "total": 40, "unit": "examples"}}\n')
    lease = open_lease(store, config.run)
    lease.acquire()
    try:
        status = StatusReader(config, store).read()
    finally:
        lease.release()
    assert status.state == "running"
    running = [(row.stage, row.attempt, row.progress) for row in status.stages if row.state == "running"]
    assert running == [("i0/evaluate", 1, "30/40"), ("i1/score", 2, "7/40")]
    stopped = StatusReader(config, store).read()
    assert [row.attempt for row in stopped.stages if row.attempt] == [1, 2]
    assert stopped.state == "stopped"


def test_last_words_come_from_the_store_that_is_open(tmp_path: Path) -> None:
    config, store = RunConfig(root=str(tmp_path / "elsewhere")), FolderStore(tmp_path / "here")
    logs = store.path(f"{config.run}/logs")
    logs.mkdir(parents=True)
    (logs / "i0-prepare-1.log").write_text("error: row 3 has no tools\n")
    row = StatusReader(config, store).read().stages[0]
    assert (row.stage, row.attempt) == ("i0/prepare", 1)
    assert row.reason.endswith("last attempt: row 3 has no tools")
