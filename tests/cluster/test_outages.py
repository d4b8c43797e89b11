"""Stages that cannot reach a service, as Jobs: tried again until it has been away for too long, however long the tries take."""

from __future__ import annotations

import pytest

from itool.artifacts.resolve import resolve
from itool.cluster.controller import StageFailed
from itool.cluster.pod_states import seconds
from itool.stages import StageId
from tests.cluster.in_memory_cluster import InMemoryCluster
from tests.cluster.runner_scenes import made_cluster, made_config, open_controller, rounds, run
from tests.fakes.memory_store import MemoryStore


def test_a_dependency_that_stays_away_gets_another_job_until_patience_ends() -> None:
    cluster = made_cluster(score=[69] * 10_000)
    with pytest.raises(StageFailed, match="told to end with 69") as caught:
        run(cluster)
    assert caught.value.exit_code == 69
    attempts = [name for name in cluster.created_jobs if "-score-" in name]
    assert [int(name.rpartition("-")[2]) for name in attempts] == list(range(1, len(attempts) + 1))
    assert len(attempts) > 3


def test_patience_ends_though_the_jobs_that_failed_first_have_expired() -> None:
    class Expiring(InMemoryCluster):
        def tick(self) -> None:
            super().tick()
            for name, job in list(self.objects["jobs"].items()):
                ended_at = seconds((job.get("status") or {}).get("completionTime"))
                if ended_at is not None and self.now - ended_at > 60.0:
                    self.delete("jobs", name)

    cluster = Expiring(MemoryStore(), made_config(), {"prepare": [69] * 1000})
    controller = open_controller(cluster)
    with pytest.raises(StageFailed, match="told to end with 69"):
        rounds(controller, 600)
    assert len(set(cluster.created_jobs)) == len(cluster.created_jobs)


@pytest.mark.parametrize("goes_with_its_node", [False, True])
def test_two_outages_with_hours_of_work_between_them_are_two(goes_with_its_node: bool) -> None:
    """The second Job's first pod works for three hours, then S3 is away again until the Job has used up its tries."""
    cluster = made_cluster(prepare=[69, 69, 69, "hangs", *([69] if goes_with_its_node else []), 69, 69, 0])
    controller = open_controller(cluster)
    rounds(controller, 20)
    [working] = [name for name, pod in cluster.objects["pods"].items() if pod["status"]["phase"] == "Running"]
    cluster.now += 3 * 3600.0
    if goes_with_its_node:
        rounds(controller, 1)
        cluster._remove("pods", working)
    else:
        cluster._outcomes[working] = 69
    rounds(controller, 60)
    assert resolve(cluster.store, cluster.config)[StageId(0, "prepare")].done
    assert [name.rpartition("-")[2] for name in cluster.created_jobs if "-prepare-" in name] == ["1", "2", "3"]
