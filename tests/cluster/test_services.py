"""The run's headless Services: made once, watched, and made again while somebody needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from itool.cluster.decide_serving import Serve, StopServing
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.serving import KubernetesServing
from itool.config import RunConfig
from tests.cluster.in_memory_cluster import InMemoryCluster, Object
from tests.cluster.runner_scenes import made_cluster, made_config, open_controller, rounds
from tests.cluster.serving_scenes import store_adapter, store_model
from tests.fakes.memory_store import MemoryStore

WORKERS, VLLM = "demo-workers", "demo-vllm"


class Counting(InMemoryCluster):
    """Counts how often a Service was posted."""

    posted = 0

    def create(self, resource: str, body: Object, *, dry_run: bool = False) -> Object | None:
        self.posted += resource == "services"
        return super().create(resource, body, dry_run=dry_run)


def counting(config: RunConfig, **script: list[Any]) -> Counting:
    return Counting(MemoryStore(), config, script)


def test_a_lost_service_of_a_training_that_spans_nodes_is_made_again_while_its_job_runs() -> None:
    cluster = counting(made_config(kubernetes={"stages": {"warmup": {"nodes": 2}}}), warmup=["hangs", "hangs"])
    controller = open_controller(cluster)
    rounds(controller, 40)
    assert cluster.posted == 1  # nothing is asked while it is there
    for times in (2, 3):
        cluster._remove("services", WORKERS)
        rounds(controller, 20)
        assert WORKERS in cluster.objects["services"]
        assert cluster.posted == times
    controller.runner.cancel(0.0)
    cluster._remove("services", WORKERS)
    for _ in range(5):
        controller.sleep(1.0)
        controller.runner.state()
    assert WORKERS not in cluster.objects["services"]


def test_a_run_without_services_watches_none() -> None:
    cluster = made_cluster()
    rounds(open_controller(cluster), 5)
    assert not {verb for resource, verb in cluster.used if resource == "services"}


def vllm_of(cluster: InMemoryCluster) -> tuple[KubernetesServing, KubernetesRunner]:
    """What a controller with a vLLM of its own has."""
    runner = open_controller(cluster).runner
    assert isinstance(runner, KubernetesRunner)
    serving = KubernetesServing(
        cluster.config,
        cluster.store,
        cluster,
        list,
        clock=lambda: cluster.now,
        owner=runner.ensure_owner,
        keep_service=runner.keep_service,
    )
    return serving, runner


def looks(serving: KubernetesServing, runner: KubernetesRunner, count: int) -> None:
    for _ in range(count):
        serving.state()
        runner.cache.wait(1.0)


@pytest.fixture
def with_vllm() -> Counting:
    return counting(made_config(policy={"backend": "vllm"}))


def test_vllms_service_is_posted_when_it_is_lost_and_only_while_vllm_runs(with_vllm: Counting, tmp_path: Path) -> None:
    serving, runner = vllm_of(with_vllm)
    looks(serving, runner, 20)
    assert with_vllm.posted == 0
    asked = Serve(store_model(with_vllm.store, tmp_path), store_adapter(with_vllm.store, tmp_path, "one"), "asked")
    serving.serve(asked)
    looks(serving, runner, 60)
    serving.serve(asked)
    assert with_vllm.posted == 1
    with_vllm._remove("services", VLLM)
    looks(serving, runner, 2)
    assert VLLM in with_vllm.objects["services"]
    serving.stop(StopServing("enough"))
    with_vllm._remove("services", VLLM)
    looks(serving, runner, 20)
    assert VLLM not in with_vllm.objects["services"]
    assert with_vllm.posted == 2


def test_a_service_that_an_earlier_owner_has_left_is_made_again_when_it_is_collected(with_vllm: Counting, tmp_path: Path) -> None:
    labels = {"itool/run": "demo"}
    leftover = {"metadata": {"name": VLLM, "labels": labels, "ownerReferences": [{"uid": "an earlier owner's"}]}}
    with_vllm._put("services", leftover, "ADDED")
    serving, runner = vllm_of(with_vllm)
    serving.serve(Serve(store_model(with_vllm.store, tmp_path), store_adapter(with_vllm.store, tmp_path, "one"), "asked"))
    assert with_vllm.posted == 0
    with_vllm._remove("services", VLLM)
    looks(serving, runner, 2)
    owner = runner.ensure_owner()["metadata"]["uid"]
    assert with_vllm.objects["services"][VLLM]["metadata"]["ownerReferences"][0]["uid"] == owner
