"""A run on this machine, as status reads it from the store and the log files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from itool.artifacts.store import FolderStore
from itool.cli.status import as_text
from itool.cluster.api_answers import ClusterDown
from itool.cluster.controller import Controller
from itool.cluster.leases import FolderLease
from itool.cluster.session import open_lease
from itool.config import RunConfig, RuntimeConfig, parse_config
from itool.errors import DependencyError, ItoolError
from itool.operations.run_status import StatusReader
from tests.cluster.in_memory_runner import InMemoryRunner

IN_A_CLUSTER = parse_config({}, ["root=s3://b/p", "iterations=0", "runtime.backend=kubernetes", "policy.backend=vllm"])


class Hangs:
    """A store, or a cluster, that gives a call up as soon as `calls` calls wait: one after the other they would wait for ever."""

    root = "s3://b/p"
    namespace = "here"

    def __init__(self, calls: threading.Barrier, error: ItoolError) -> None:
        self._calls, self._error = calls, error
        self.asked: list[tuple[str, ...]] = []

    def _hang(self, *arguments: str) -> NoReturn:
        self.asked.append(arguments)
        self._calls.wait(timeout=10)
        raise self._error

    get = list = read = _hang


class Serves:
    """A cluster that answers: a run without Jobs, with some pods of vLLM."""

    namespace = "here"

    def __init__(self, pods: int) -> None:
        self._pods = pods

    def list(self, resource: str, labels: str = "", fields: str = "") -> tuple[Any, str]:
        labelled = {"labels": {"app.kubernetes.io/component": "serving"}, "creationTimestamp": "2026-11-21T11:58:00Z"}
        pods = [{"metadata": {"name": f"vllm-{pod}", **labelled}, "spec": {}, "status": {"phase": "Running"}} for pod in range(self._pods)]
        return pods if resource == "pods" else [], "1"

    def get(self, *_arguments: str) -> None:
        """There is none."""


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
    assert running == [("i0/evaluate", 1, "30/40 examples"), ("i1/score", 2, "7/40 examples")]
    stopped = StatusReader(config, store).read()
    assert [row.attempt for row in stopped.stages if row.attempt] == [1, 2]
    assert stopped.state == "stopped"


def test_a_lock_that_cannot_be_read_hides_no_stage(tmp_path: Path) -> None:
    config, store = RunConfig(root=str(tmp_path), iterations=0), FolderStore(tmp_path)
    runner = InMemoryRunner(store, config)
    controller, lock = Controller(config, store, runner, FolderLease(tmp_path / "other")), tmp_path / config.run / "controller.lock"
    while len(runner.started) < 2:
        controller.step()
    lock.symlink_to(lock)  # root, too, fails to open it
    reader = StatusReader(config, store)
    status = reader.read()
    assert (status.state, status.done, status.controller, status.unread) == ("unknown", 1, None, ("lock",))
    assert str(reader.error) == status.problem
    assert as_text(status, with_problem=False).endswith("run demo: unknown, 1 of 4 stages done; who works on it cannot be seen")
    while not controller.step():
        pass
    done = reader.read()
    assert (done.state, done.done) == ("done", 4)
    assert as_text(done, with_problem=False).endswith("run demo: done, 4 of 4 stages done; who works on it cannot be seen")


def test_last_words_come_from_the_store_that_is_open(tmp_path: Path) -> None:
    config, store = RunConfig(root=str(tmp_path / "elsewhere")), FolderStore(tmp_path / "here")
    logs = store.path(f"{config.run}/logs")
    logs.mkdir(parents=True)
    (logs / "i0-prepare-1.log").write_text("error: row 3 has no tools\n")
    row = StatusReader(config, store).read().stages[0]
    assert (row.stage, row.attempt) == ("i0/prepare", 1)
    assert row.reason.endswith("last attempt: row 3 has no tools")


def test_a_store_and_a_cluster_that_both_hang_are_waited_for_once_and_both_named() -> None:
    calls = threading.Barrier(2)
    store, cluster = Hangs(calls, DependencyError("S3 hangs")), Hangs(calls, ClusterDown("Kubernetes hangs"))
    reader = StatusReader(IN_A_CLUSTER, store, cluster)
    status = reader.read()
    assert (status.state, status.problem) == ("unknown", "S3 hangs; and Kubernetes hangs")
    assert status.unread == ("artifacts", "cluster")
    with pytest.raises(DependencyError, match="S3 hangs; and Kubernetes hangs"):
        raise reader.error or AssertionError


@pytest.mark.parametrize("pods", [1, 12])
def test_a_store_that_hangs_is_waited_for_once_whatever_it_is_asked(pods: int) -> None:
    """The artifacts, what vLLM shall serve, and what each of its pods has proved."""
    store = Hangs(threading.Barrier(2 + pods), DependencyError("S3 hangs"))
    assert StatusReader(IN_A_CLUSTER, store, Serves(pods)).read().problem == "S3 hangs"


def test_a_store_that_hangs_is_waited_for_once_however_long_the_run_is() -> None:
    """Eight folders are listed side by side."""
    store = Hangs(threading.Barrier(8), DependencyError("S3 hangs"))
    config = RunConfig(root="s3://b/p", iterations=40)
    assert StatusReader(config, store).read().problem == "S3 hangs"
    assert len(store.asked) == 8
