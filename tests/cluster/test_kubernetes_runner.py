"""A run as Jobs, on a cluster in memory: who retries what, what is kept, and that a controller may die between any two calls."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itool.artifacts.resolve import resolve
from itool.cluster.client import PERMISSIONS
from itool.cluster.controller import StageFailed
from itool.cluster.job_facts import verdict_on
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.leases import LeaseLost
from itool.cluster.progress import NoWatcher
from itool.cluster.run_events import RunEvents
from itool.cluster.runner import Attempt, Task
from itool.errors import ConfigError, DependencyError, Interrupted
from itool.stages import StageId, stage_ids
from tests.cluster.in_memory_cluster import InMemoryCluster, Killed
from tests.cluster.runner_scenes import made_cluster, made_config, open_controller, release_of, rounds, run
from tests.cluster.serving_scenes import serve_and_stop
from tests.fakes.memory_store import MemoryStore
from tests.fakes.waiting import wait_until


def digests(cluster: InMemoryCluster) -> list[str]:
    return [found.manifest.digest for found in resolve(cluster.store, cluster.config).values() if found.manifest]


def stages(names: list[str]) -> list[str]:
    """`i1-score` of `demo-i1-score-0123abcd-1`."""
    return ["-".join(name.split("-")[1:3]) for name in names]


def test_a_run_is_one_job_per_stage_in_order() -> None:
    cluster = made_cluster()
    run(cluster)
    assert stages(cluster.created_jobs) == [f"i{stage.iteration}-{stage.name}" for stage in stage_ids(cluster.config)]
    assert len(digests(cluster)) == len(stage_ids(cluster.config))


def test_a_finished_run_starts_nothing_and_more_iterations_only_add() -> None:
    cluster = made_cluster()
    run(cluster)
    cluster.created_jobs.clear()
    run(cluster)
    assert cluster.created_jobs == []
    cluster.config = cluster.config.model_copy(update={"iterations": 2})
    run(cluster)
    assert stages(cluster.created_jobs) == ["i2-score", "i2-generate", "i2-dpo", "i2-evaluate", "i2-report"]


def test_jobs_of_an_earlier_controller_are_not_told_as_this_ones() -> None:
    cluster, told = made_cluster(), []

    class Listener(NoWatcher):
        def ended(self, task: Task, attempt: Attempt) -> None:
            told.append((task.label, attempt.number))

    run(cluster)
    cluster.config = cluster.config.model_copy(update={"iterations": 2})
    controller = open_controller(cluster)
    controller.watcher = Listener()
    controller.run()
    assert told == [(f"i2-{name}", 1) for name in ("score", "generate", "dpo", "evaluate", "report")]


@pytest.mark.parametrize("outcomes", [[137], ["oom", 1], [69, 69], [75, 75, 75, 75], ["disrupted"] * 4])
def test_kubernetes_starts_a_failed_pod_again_without_us(outcomes: list[object]) -> None:
    cluster = made_cluster(score=outcomes)
    run(cluster)
    assert len(cluster.created_jobs) == len(stage_ids(cluster.config))


@pytest.mark.parametrize("code", [64, 65, 76])
def test_what_no_retry_helps_fails_the_run_at_once_with_its_exit_code(code: int) -> None:
    cluster = made_cluster(score=[code])
    with pytest.raises(StageFailed, match=f"i1/score failed: told to end with {code}") as caught:
        run(cluster)
    assert caught.value.exit_code == code
    assert stages(cluster.created_jobs)[-1] == "i1-score"


def test_retries_come_to_an_end() -> None:
    cluster = made_cluster(score=["oom"] * 9)
    with pytest.raises(StageFailed, match="OOMKilled: over the memory limit of 2Gi") as caught:
        run(cluster)
    assert caught.value.exit_code == 1
    assert len(cluster.script["score"]) == 9 - 3  # two retries


def test_a_shard_has_retries_of_its_own() -> None:
    cluster = made_cluster(generate=[1, 1, 1, 1, 1])  # three shards fail, two of them twice
    run(cluster)
    assert len(cluster.created_jobs) == len(stage_ids(cluster.config))


def test_a_shard_that_fails_for_good_is_not_mistaken_for_the_ones_that_are_stopped_with_it() -> None:
    """These end last, with a checkpoint and exit code 75: taken for the reason, that would start another Job without an end."""
    cluster = made_cluster(generate=[1, "hangs", "hangs", 1, 1])
    with pytest.raises(StageFailed, match="told to end with 1") as caught:
        run(cluster)
    assert caught.value.exit_code == 1


def test_a_person_who_runs_again_gets_another_try() -> None:
    cluster = made_cluster(score=[65])
    with pytest.raises(StageFailed):
        run(cluster)
    run(cluster)
    assert [name.rpartition("-")[2] for name in cluster.created_jobs if "-score-" in name] == ["1", "2"]


def test_a_job_that_was_removed_starts_anew_under_its_name() -> None:
    """Neither its end nor how long it has waited counts for the one that follows it."""
    cluster = made_cluster(prepare=["no pod"])
    controller = open_controller(cluster)
    rounds(controller, 15)
    (name,) = cluster.created_jobs
    for _ in range(3):
        cluster.delete("jobs", name)
        controller.sleep(1.0)
        rounds(controller, 15)
    assert set(cluster.created_jobs) == {name}
    assert "itool/verdict" not in str(cluster.objects["jobs"])


def test_the_logs_of_a_job_that_was_removed_are_not_followed_for_ever() -> None:
    cluster = made_cluster(prepare=["hangs"])
    controller = open_controller(cluster)
    rounds(controller, 4)
    runner = controller.runner
    assert isinstance(runner, KubernetesRunner)
    assert runner.pod_logs._jobs
    cluster.delete("jobs", cluster.created_jobs[0])
    controller.sleep(1.0)

    def nothing_is_followed() -> bool:
        runner.state()
        return not runner.pod_logs._jobs

    wait_until(nothing_is_followed)


def test_a_job_that_another_controller_has_seen_end_may_come_again_under_its_name() -> None:
    cluster = made_cluster(prepare=[64])
    with pytest.raises(StageFailed):
        run(cluster)
    controller = open_controller(cluster)  # the Job is over for it
    (name,) = cluster.created_jobs
    cluster.delete("jobs", name)
    cluster.script["prepare"] = ["hangs"]
    controller.sleep(1.0)
    rounds(controller, 5)
    assert cluster.created_jobs == [name, name]


def test_a_pod_that_fills_its_disk_is_not_repeated_for_ever() -> None:
    cluster = made_cluster(score=["evicted"] * 50)
    with pytest.raises(StageFailed, match='Evicted: Usage of EmptyDir volume "scratch" exceeds the limit') as caught:
        run(cluster)
    assert caught.value.exit_code == 74
    assert len(cluster.script["score"]) == 50 - 3  # the second one is found out when the third pod is there


def test_shards_that_are_evicted_once_each_go_on() -> None:
    cluster = made_cluster(generate=["evicted"] * 3)
    assert resolve(cluster.store, run(cluster).config)[StageId(1, "generate")].done
    assert not any(verdict_on(job) for job in cluster.objects["jobs"].values())


def test_a_jobs_failure_has_its_pods_reason_though_the_watch_of_pods_hangs() -> None:
    """Taken for an unknown failure, a service that is down would end the run."""
    cluster = made_cluster(prepare=[69, 69, 69])
    controller = open_controller(cluster)
    runner = controller.runner
    assert isinstance(runner, KubernetesRunner)
    items = runner.cache.items
    runner.cache.items = lambda kind: [] if kind == "pods" else items(kind)
    rounds(controller, 60)
    assert resolve(cluster.store, cluster.config)[StageId(0, "prepare")].done
    attempts = runner.state()[next(task for task in runner.state() if task.stage.name == "prepare")]
    assert [(attempt.exit_code, attempt.reason) for attempt in attempts] == [(69, "told to end with 69 (3 pods failed)"), (0, "")]


def test_a_run_that_fails_while_the_watch_of_pods_hangs_stores_the_log_of_the_pod_that_failed_it() -> None:
    cluster = made_cluster(prepare=["hangs"])
    controller = open_controller(cluster)
    rounds(controller, 4)  # its pod is seen to run
    watch = cluster.watch
    cluster.watch = lambda resource, *version: iter(()) if resource == "pods" else watch(resource, *version)
    (pod,) = cluster.objects["pods"]
    cluster._outcomes[pod] = 65
    with pytest.raises(StageFailed):
        controller.run()
    controller.runner.close()
    assert "error: told to end with 65" in cluster.store.read("demo/logs/i0-prepare-1.log").decode()


def test_a_stage_without_an_artifact_fails_the_run() -> None:
    cluster = made_cluster(score=["no artifact"])
    with pytest.raises(StageFailed, match="leaves no artifact"):
        run(cluster)


def test_a_controller_that_is_stopped_leaves_the_jobs_alone_and_another_goes_on() -> None:
    cluster = made_cluster()
    controller = open_controller(cluster)
    controller.stop_requested = lambda: len(cluster.created_jobs) == 3
    with pytest.raises(Interrupted):
        controller.run()
    controller.lease.release()
    assert not [job for job in cluster.objects["jobs"].values() if "activeDeadlineSeconds" in job["spec"]]
    run(cluster)
    assert len(cluster.created_jobs) == len(stage_ids(cluster.config))


def test_cancelling_ends_what_runs_and_a_new_start_resumes() -> None:
    cluster = made_cluster(prepare=["hangs"])
    controller = open_controller(cluster)
    for _ in range(3):
        controller.step()
        controller.sleep(1.0)
    runner = controller.runner
    assert isinstance(runner, KubernetesRunner)
    runner.cancel(60.0)
    (attempt,) = next(iter(runner.state().values()))
    assert (attempt.phase, attempt.exit_code, attempt.reason) == ("failed", 75, "cancelled")
    controller.lease.release()
    run(cluster)
    assert stages(cluster.created_jobs)[:3] == ["i0-prepare", "i0-prepare", "i0-warmup"]


def hanging(cluster: InMemoryCluster) -> KubernetesRunner:
    """The runner of a controller whose first stage runs, and does not end when it is asked to."""
    controller = open_controller(cluster)
    rounds(controller, 3)
    runner = controller.runner
    assert isinstance(runner, KubernetesRunner)
    cluster.tick = lambda: None
    return runner


def test_a_job_that_does_not_end_is_waited_for_and_asked_once() -> None:
    cluster = made_cluster(prepare=["hangs"])
    runner, waits = hanging(cluster), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        assert len(waits) < 10
        cluster.now += seconds

    runner.cache.wait = wait
    runner.settle(0.0)
    assert waits == []
    runner.cancel(5.0)
    assert waits == [1.0] * 5
    (task,), calls = runner.state().keys(), cluster.calls
    runner.stop(task, 1, "other settings")
    assert cluster.calls == calls
    assert verdict_on(cluster.objects["jobs"][cluster.created_jobs[0]]) == (75, "cancelled")


def test_a_failed_job_whose_pods_are_gone_is_not_waited_for_without_an_end() -> None:
    cluster = made_cluster(prepare=[65])
    controller = open_controller(cluster)
    controller.step()
    runner = controller.runner
    assert isinstance(runner, KubernetesRunner)
    items = runner.cache.items
    runner.cache.items = lambda kind: [] if kind == "pods" else items(kind)
    phases = []
    for _ in range(12):
        controller.sleep(1.0)
        phases += [attempt.phase for attempts in runner.state().values() for attempt in attempts]
    assert phases[-1] == "failed"


def test_a_changed_setting_ends_the_job_that_was_left_behind() -> None:
    cluster = made_cluster(prepare=["hangs"])
    controller = open_controller(cluster)
    for _ in range(4):
        controller.step()
        controller.sleep(1.0)
    controller.lease.release()
    cluster.config = cluster.config.model_copy(update={"seed": 18})
    run(cluster)
    left = cluster.objects["jobs"][cluster.created_jobs[0]]
    assert verdict_on(left) == (75, "i0/prepare has other settings or inputs now")
    assert len(cluster.created_jobs) == len(stage_ids(cluster.config)) + 1


def test_logs_of_all_pods_are_kept_and_then_the_job_may_go() -> None:
    cluster = made_cluster(score=[137])
    run(cluster)
    again = open_controller(cluster)  # what the first controller had no time for
    assert isinstance(again.runner, KubernetesRunner)
    again.runner.settle(10_000.0)
    assert {job["spec"]["ttlSecondsAfterFinished"] for job in cluster.objects["jobs"].values()} == {77}
    names = [key.rpartition("/")[2] for key in cluster.store.list("demo/logs")]
    shards = [f"i1-generate-{shard}-1.log" for shard in range(3)]
    others = [f"i{stage.iteration}-{stage.name}-1.log" for stage in stage_ids(cluster.config) if stage.name != "generate"]
    assert sorted(names) == sorted([*shards, *others])
    lines = cluster.store.read("demo/logs/i1-score-1.log").decode().splitlines()
    assert [line.startswith("== pod demo-i1-score-") for line in lines] == [True, False, False] * 2
    assert [line for line in lines if not line.startswith("==")] == ["started", "error: told to end with 137", "started", "done"]


def test_a_log_that_is_given_up_is_not_waited_for_but_left_to_the_next_controller() -> None:
    class Denying(InMemoryCluster):
        def pod_log(self, name: str, container: str, **options: Any) -> Iterator[bytes]:
            if denied:
                raise ConfigError("not allowed to get pods/log")
            yield from super().pod_log(name, container, **options)

    denied, cluster = True, Denying(MemoryStore(), made_config())
    controller = open_controller(cluster)
    while not controller.step():
        controller.sleep(1.0)
    assert isinstance(controller.runner, KubernetesRunner)
    looks, tick = itertools.count(), controller.sleep

    def wait(seconds: float) -> None:
        if next(looks) == 200:
            pytest.fail("a log is waited for that was given up")
        time.sleep(0.01)
        tick(seconds)

    controller.runner.cache.wait = wait
    controller.runner.settle(10_000.0)
    assert not cluster.store.list("demo/logs")
    controller.lease.release()
    denied = False
    again = open_controller(cluster)
    assert isinstance(again.runner, KubernetesRunner)
    again.runner.settle(10_000.0)
    assert len(cluster.store.list("demo/logs")) == len(stage_ids(cluster.config)) + 2  # generate has three


def test_logs_are_kept_where_an_admission_policy_gives_every_job_a_time_to_live() -> None:
    class Policed(InMemoryCluster):
        def create(self, resource: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any] | None:
            limited = {**body, "spec": {"ttlSecondsAfterFinished": 3600, **body["spec"]}} if resource == "jobs" else body
            return super().create(resource, limited, dry_run=dry_run)

    cluster = Policed(MemoryStore(), made_config())
    run(cluster)
    again = open_controller(cluster)
    assert isinstance(again.runner, KubernetesRunner)
    again.runner.settle(10_000.0)
    assert len(cluster.store.list("demo/logs")) == len(stage_ids(cluster.config)) + 2  # generate has three
    assert {job["spec"]["ttlSecondsAfterFinished"] for job in cluster.objects["jobs"].values()} == {77}
    again.lease.release()
    cluster.used.clear()
    open_controller(cluster).runner.state()
    assert ("jobs", "patch") not in cluster.used  # nothing is left to do


def test_a_cluster_that_is_down_for_a_moment_is_waited_for() -> None:
    cluster = made_cluster()
    controller = open_controller(cluster)
    sleeps = 0

    def sleep(_seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        cluster.down = 10 <= sleeps < 70
        cluster.gone = sleeps == 75
        cluster.tick()
        controller.runner.cache.look()

    controller.sleep = sleep
    controller.run()
    assert len(digests(cluster)) == len(stage_ids(cluster.config))


def test_a_store_that_is_down_for_longer_than_the_lease_lives_is_waited_for() -> None:
    cluster = made_cluster(made_config(kubernetes={"backoff_limit": 100}))
    store, controller = cluster.store, open_controller(cluster)
    assert isinstance(store, MemoryStore)
    rounds, tick = 0, controller.sleep

    def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        store.down = 8 <= rounds < 100
        tick(seconds)

    controller.sleep = sleep
    controller.run()
    assert len(digests(cluster)) == len(stage_ids(cluster.config))
    assert len(cluster.created_jobs) == len(stage_ids(cluster.config))


def test_a_controller_whose_run_was_taken_over_during_an_outage_stops_acting() -> None:
    cluster = made_cluster()
    first = open_controller(cluster)
    first.step()
    cluster.now += 100.0  # it was away for longer than its lease lives
    open_controller(cluster)
    created = list(cluster.created_jobs)
    first.runner.state = lambda: pytest.fail("it looks, and so judges the other's Jobs")
    with pytest.raises(LeaseLost, match="another controller has taken over run demo"):
        first.run()
    assert cluster.created_jobs == created


def test_a_cluster_that_stays_down_ends_the_controller() -> None:
    cluster = made_cluster()
    controller = open_controller(cluster)
    controller.step()
    cluster.down = True
    controller.sleep(1.0)
    with pytest.raises(DependencyError, match="API server is down"):
        controller.run()


def test_the_rights_that_are_asked_for_are_those_that_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two_nodes = {"stages": {"dpo": {"nodes": 2}}, "pending_seconds": 20.0}
    cluster = made_cluster(made_config(kubernetes=two_nodes), evaluate=["no pod"])
    with pytest.raises(StageFailed):
        run(cluster)
    cluster.script.clear()
    release_of(cluster, "demo-config", monkeypatch)
    run(cluster)
    queued = made_cluster(made_config(kubernetes={"queue": "gpus"}))
    controller = open_controller(queued)
    controller.step()
    controller.runner.cancel(0.0)
    RunEvents(cluster, lambda: cluster.objects["configmaps"]["itool-run-demo"], NoWatcher()).stopping()
    serve_and_stop(made_config(policy={"backend": "vllm"}), cluster, cluster.objects["configmaps"]["itool-run-demo"], tmp_path)
    groups = {"jobs": "batch/jobs", "deployments": "apps/deployments"}
    used = {(groups.get(resource, resource), verb) for resource, verb in cluster.used | queued.used}
    assert used == {(resource, verb) for resource, verbs in PERMISSIONS.items() for verb in verbs}


@settings(max_examples=8)
@given(deaths=st.lists(st.integers(min_value=0, max_value=90), max_size=5))
def test_killed_between_any_two_calls_and_restarted_it_ends_in_the_same_state(deaths: list[int]) -> None:
    plain, cluster = made_cluster(), made_cluster()
    run(plain)
    for death in deaths:
        cluster.die_after = death
        try:
            run(cluster)
        except Killed:
            for _ in range(65):  # Jobs go on, and the dead controller's lease expires
                cluster.tick()
    cluster.die_after = None
    run(cluster)
    assert digests(cluster) == digests(plain)
    assert sorted(cluster.created_jobs) == sorted(plain.created_jobs)


@pytest.mark.slow
def test_two_hundred_iterations_cost_few_calls_per_job() -> None:
    cluster = made_cluster(made_config(iterations=200, search={"shards": 1}))
    run(cluster)
    jobs = len(stage_ids(cluster.config))
    assert len(cluster.created_jobs) == jobs
    assert cluster.calls < 16 * jobs
