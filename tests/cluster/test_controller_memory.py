"""What a controller of many iterations still holds of those that are over."""

from __future__ import annotations

import gc

from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.runner import Task
from tests.cluster.runner_scenes import made_cluster, made_config, open_controller


def tasks_held() -> int:
    """Whoever remembers an attempt holds its task."""
    gc.collect()
    return sum(type(found) is Task for found in gc.get_objects())


def test_an_attempt_is_forgotten_when_its_job_is_gone() -> None:
    before = tasks_held()
    cluster = made_cluster(made_config(iterations=4, search={"shards": 1}))
    controller = open_controller(cluster)
    runner = controller.runner
    assert isinstance(runner, KubernetesRunner)
    controller.run()
    for name in cluster.created_jobs:
        cluster.delete("jobs", name)
    runner.cache.look()
    assert controller.step()
    assert tasks_held() <= before
    runner.close()
