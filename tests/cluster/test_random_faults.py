"""Whole runs as Jobs under faults drawn by seed: each ends, with the artifacts of an undisturbed run or a reason that was put in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from itool.artifacts.resolve import resolve
from itool.cluster import kubernetes_runner
from itool.cluster.api_answers import ClusterDown, Gone
from itool.cluster.controller import StageFailed
from itool.cluster.job_facts import is_over, task_of
from itool.cluster.pod_states import seconds
from itool.errors import DependencyError, ItoolError
from tests.cluster.in_memory_cluster import InMemoryCluster, Killed, Object, Outcome
from tests.cluster.runner_scenes import made_config, run
from tests.fakes.memory_store import MemoryStore

FAULTY_SECONDS = 400.0
LONGEST_SECONDS = 3000.0
LEASE_SECONDS = 65
OUTCOMES: list[Outcome] = [64, 65, 69, 74, 75, 76, 137, 1, "oom", "evicted", "disrupted", "unschedulable", "no pod"]
CODE_OF: dict[Outcome, int] = {137: 1, "oom": 1, "evicted": 74, "unschedulable": 69, "no pod": 69}


@dataclass
class Faults:
    """What goes wrong, and how often: the kind of a run is drawn once, so that some have one fault and some all."""

    seed: int
    on: bool = True
    draw: random.Random = field(init=False)
    rates: dict[str, float] = field(init=False)
    codes: set[int] = field(default_factory=lambda: {69})

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        often = {"pod": 0.8, "api": 0.03, "store": 0.03, "lost": 0.1, "kill": 0.002, "hang": 0.1, "gone": 0.02, "job": 0.005, "node": 0.02}
        self.rates = {name: rate * self.draw.choice([0, 0.3, 1]) for name, rate in often.items()}
        self.outcomes = self.draw.sample(OUTCOMES, self.draw.randint(1, 4))

    def come(self, name: str) -> bool:
        return self.on and self.draw.random() < self.rates[name]


@dataclass
class FaultyStore(MemoryStore):
    """Fails before or after it does what it is asked, and notices a manifest that is written twice."""

    faults: Faults = field(default_factory=lambda: Faults(0, on=False))

    def create(self, key: str, data: bytes) -> bool:
        made = super().create(key, data)
        if self.faults.come("lost"):
            raise DependencyError("S3's answer was lost")
        return made

    def write(self, key: str, data: bytes) -> None:
        assert not key.endswith("manifest.json")
        super().write(key, data)

    def _call(self) -> None:
        if self.faults.come("store"):
            raise DependencyError("S3 does not answer")


class FaultyCluster(InMemoryCluster):
    """Answers that fail, are lost or late, pods that end badly, nodes and Jobs that go, Jobs that expire after a minute."""

    def __init__(self, faults: Faults, store: MemoryStore) -> None:
        super().__init__(store, made_config(iterations=2))
        self.faults = faults
        self.hangs_until: dict[str, float] = {}
        self.began = self.now

    def create(self, resource: str, body: Object, *, dry_run: bool = False) -> Object | None:
        if resource == "jobs" and body["metadata"]["name"] not in self.objects["jobs"]:
            assert not [job for job in self.objects["jobs"].values() if not is_over(job) and task_of(job) == task_of(body)]
        return super().create(resource, body, dry_run=dry_run)

    def watch(self, resource: str, version: str, labels: str = "", fields: str = "") -> Iterator[tuple[str, Object]]:
        if self.faults.come("hang"):
            self.hangs_until[resource] = self.now + self.faults.draw.choice([2.0, 10.0, 35.0])
        if self.faults.come("gone"):
            raise Gone("too old")
        return iter(()) if self.hangs_until.get(resource, 0.0) > self.now else super().watch(resource, version, labels, fields)

    def tick(self) -> None:
        assert self.now - self.began < LONGEST_SECONDS
        self.faults.on &= self.now - self.began < FAULTY_SECONDS
        for name, job in list(self.objects["jobs"].items()):
            ended_at = seconds((job.get("status") or {}).get("completionTime"))
            if (ended_at is not None and self.now - ended_at > 60.0) or (ended_at is None and self.faults.come("job")):
                self._remove_job(name)
        for name, pod in list(self.objects["pods"].items()):
            if pod["status"]["phase"] == "Running" and self.faults.come("node"):
                self._outcomes[name] = "disrupted"
            if not self.faults.on and self._outcomes[name] == "unschedulable":
                self._outcomes[name] = 0
        super().tick()

    def _remove_job(self, name: str) -> None:
        for pod in self._pods_of(self.objects["jobs"][name]):
            self._remove("pods", pod["metadata"]["name"])
        self._remove("jobs", name)

    def _create_pod(self, job: Object, index: int) -> None:
        outcome = self.faults.draw.choice(self.faults.outcomes) if self.faults.come("pod") else 0
        self.faults.codes.add(CODE_OF.get(outcome, outcome if isinstance(outcome, int) else 0))
        self.script[task_of(job).stage.name] = [outcome]
        super()._create_pod(job, index)

    def _call(self, resource: str, verb: str, *, count: bool = True) -> None:
        super()._call(resource, verb, count=count)
        if count and self.faults.come("kill"):
            raise Killed
        if self.faults.come("api"):
            raise ClusterDown("the API server is in trouble")


@pytest.mark.parametrize("seed", range(10, 22))
def test_a_run_under_random_faults_ends_with_the_undisturbed_runs_artifacts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_runner, "LOGS_SECONDS", 0.0)
    faults = Faults(seed)
    cluster = FaultyCluster(faults, FaultyStore(faults=faults))
    while not _lives_to_the_end(cluster):
        for _ in range(LEASE_SECONDS):
            cluster.tick()
    faults.on = False
    for _ in range(LEASE_SECONDS):
        cluster.tick()
    assert all(is_over(job) for job in cluster.objects["jobs"].values())
    assert _digests(cluster) == _digests(_undisturbed())


def _lives_to_the_end(cluster: FaultyCluster) -> bool:
    """One controller's life: whether it finished the run. What it fails with must have been put in."""
    try:
        run(cluster)
    except Killed:
        return False
    except ItoolError as error:
        put_in = cluster.faults.codes if isinstance(error, StageFailed) else {69}
        if error.exit_code not in put_in:
            pytest.fail(f"exit code {error.exit_code}, put in were {put_in}: {error}")
        return False
    return True


def _undisturbed() -> FaultyCluster:
    faults = Faults(0, on=False)
    cluster = FaultyCluster(faults, FaultyStore(faults=faults))
    run(cluster)
    return cluster


def _digests(cluster: FaultyCluster) -> list[str | None]:
    return [found.digest for found in resolve(cluster.store, cluster.config).values()]
