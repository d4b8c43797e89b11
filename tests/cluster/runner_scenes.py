"""Runs as Jobs on a cluster in memory: a configuration, a cluster, and controllers whose every look lets a second pass there."""

from __future__ import annotations

import pytest

from itool.cluster.controller import Controller, rules_of
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.leases import StoreLease
from itool.config import RunConfig, parse_config
from tests.cluster.in_memory_cluster import InMemoryCluster
from tests.fakes.memory_store import MemoryStore

OPENED: list[KubernetesRunner] = []
"""Runners whose log readers a test may have left at work; conftest.py ends them."""


def made_config(**more: object) -> RunConfig:
    document: dict[str, object] = {
        "root": "s3://bucket/runs",
        "iterations": 1,
        "runtime": {"backend": "kubernetes"},
        "search": {"shards": 3},
        "kubernetes": {"backoff_limit": 2, "pending_seconds": 20.0, "keep_seconds": 77},
    }
    return parse_config(document | more)


def open_controller(cluster: InMemoryCluster) -> Controller:
    """A controller whose every look lets a second pass in the cluster."""

    def clock() -> float:
        return cluster.now

    runner = KubernetesRunner(cluster.config, cluster, cluster.store, clock=clock)
    OPENED.append(runner)
    lease = StoreLease(cluster.store, cluster.config.run, clock=clock)
    lease.acquire()

    def sleep(_seconds: float) -> None:
        cluster.tick()
        runner.cache.look()

    runner.cache.wait = sleep
    runner.cache.start(follow=False)
    runner.remember_the_past()
    rules = rules_of(cluster.config)
    return Controller(cluster.config, cluster.store, runner, lease, rules=rules, clock=clock, awake=clock, sleep=sleep)


def run(cluster: InMemoryCluster) -> Controller:
    controller = open_controller(cluster)
    try:
        controller.run()
    finally:
        controller.runner.close()
        controller.lease.release()
    return controller


def rounds(controller: Controller, count: int) -> None:
    for _ in range(count):
        controller.step()
        controller.sleep(1.0)


def made_cluster(config: RunConfig | None = None, **script: list[object]) -> InMemoryCluster:
    return InMemoryCluster(MemoryStore(), config or made_config(), script)


def release_of(cluster: InMemoryCluster, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The uid of a release's ConfigMap; the controller is its own."""
    monkeypatch.setenv("ITOOL_RELEASE_CONFIGMAP", name)
    release = cluster.create("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
    assert release is not None
    return str(release["metadata"]["uid"])
