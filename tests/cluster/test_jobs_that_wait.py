"""Jobs that wait for a node, an image, a quota, a queue or each other: what is said of them, and when hope is gone."""

from __future__ import annotations

import pytest

from itool.cluster.controller import StageFailed
from itool.cluster.job_facts import verdict_on
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.pod_states import seconds
from itool.cluster.runner import Task
from itool.stages import StageId
from tests.cluster.runner_scenes import made_cluster, made_config, open_controller, rounds, run


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (["unschedulable"], "too few GPUs"),
        (["no image"], "no such image"),
        (["no pod"], "no pod can be created: .*exceeded quota"),
        ([137, "no pod"], "no pod can be created: .*exceeded quota"),
    ],
)
def test_what_cannot_start_fails_the_run_in_the_end_and_says_why(outcomes: list[object], words: str) -> None:
    cluster = made_cluster(score=outcomes)
    with pytest.raises(StageFailed, match=f"could not start within 20 s .*{words}") as caught:
        run(cluster)
    assert caught.value.exit_code == 69
    job = next(job for name, job in cluster.objects["jobs"].items() if "-score-" in name)
    assert verdict_on(job) is not None
    assert job["spec"]["activeDeadlineSeconds"] == 1


def test_a_job_that_started_while_this_machine_slept_is_not_judged_by_what_was_seen_before() -> None:
    cluster = made_cluster(prepare=["unschedulable"])
    controller = open_controller(cluster)
    controller.runner.cache._clock = lambda: cluster.now
    rounds(controller, 4)
    [pod] = cluster.objects["pods"]
    cluster._outcomes[pod] = "hangs"  # a node comes
    cluster.tick()
    cluster.now += 8 * 3600.0
    controller.step()
    rounds(controller, 4)
    assert "itool/verdict" not in str(cluster.objects["jobs"])


def test_a_job_that_waits_says_why() -> None:
    cluster = made_cluster(prepare=["unschedulable"])
    controller = open_controller(cluster)
    for _ in range(4):
        controller.step()
        controller.sleep(1.0)
    (attempt,) = next(iter(controller.runner.state().values()))
    assert (attempt.phase, attempt.reason) == ("pending", "unschedulable: 0/1 nodes: too few GPUs")


def test_a_pod_that_follows_after_a_long_pause_is_no_pod_that_cannot_start() -> None:
    cluster = made_cluster(prepare=[137])
    controller = open_controller(cluster)
    rounds(controller, 2)
    cluster._replace_pods = lambda _job: None  # Kubernetes' pause
    rounds(controller, 40)
    assert "itool/verdict" not in str(cluster.objects["jobs"])


def test_of_two_jobs_that_wait_each_says_why() -> None:
    cluster = made_cluster(score=["no pod"], evaluate=["no pod"])
    runner = open_controller(cluster).runner
    assert isinstance(runner, KubernetesRunner)
    for stage in (StageId(0, "evaluate"), StageId(1, "score")):
        runner.start(Task(stage, "0" * 16), 1)
    for _ in range(8):
        runner.cache.wait(1.0)
        found = runner.state()
    assert [attempt.reason for (attempt,) in found.values()] == ["no pod can be created: pods are forbidden: exceeded quota"] * 2


def test_jobs_that_start_soon_are_not_asked_why_they_wait() -> None:
    cluster = made_cluster()
    run(cluster)
    assert ("events", "list") not in cluster.used


def test_shards_wait_for_each_other_without_a_deadline() -> None:
    cluster = made_cluster(generate=["hangs", "unschedulable"])
    controller = open_controller(cluster)
    for _ in range(80):
        controller.step()
        controller.sleep(1.0)
    assert "itool/verdict" not in str(cluster.objects["jobs"])


def test_the_next_stage_does_not_wait_until_kubernetes_has_counted_the_pods_of_the_last() -> None:
    cluster = made_cluster()
    cluster.lag_seconds = 90.0  # longer than a pod may be pending
    run(cluster)
    assert "itool/verdict" not in str(cluster.objects["jobs"])
    last = cluster.objects["jobs"][cluster.created_jobs[-1]]
    created_at = seconds(last["metadata"]["creationTimestamp"])
    assert created_at is not None
    assert created_at - 1_800_000_000.0 < 90.0


def test_shards_that_are_refused_a_pod_after_others_are_done_fail_the_run_and_say_why() -> None:
    one_by_one = {"parallel_shards": 1, "pending_seconds": 20.0}
    cluster = made_cluster(made_config(kubernetes=one_by_one), generate=[0, "unschedulable", "no pod"])
    controller = open_controller(cluster)
    tick = controller.sleep

    def sleep(seconds: float) -> None:
        """The second shard's pod waits for a moment, then somebody removes it."""
        for name in [name for name, pod in cluster.objects["pods"].items() if "Unschedulable" in str(pod["status"])]:
            cluster._remove("pods", name)
        tick(seconds)

    controller.sleep = sleep
    with pytest.raises(StageFailed, match=r"could not start within 20 s .*: no pod can be created: pods are forbidden: exceeded quota"):
        controller.run()


def test_a_job_that_is_refused_another_pod_has_all_its_time_again() -> None:
    cluster = made_cluster(prepare=["no pod"])
    controller = open_controller(cluster)
    rounds(controller, 15)
    cluster.script["prepare"] = ["hangs"]
    rounds(controller, 15)
    cluster.script["prepare"] = ["no pod"]
    (pod,) = cluster.objects["pods"]
    cluster._remove("pods", pod)
    rounds(controller, 15)
    with pytest.raises(StageFailed, match="could not start within 20 s"):
        rounds(controller, 15)


@pytest.mark.parametrize("ends_meanwhile", [False, True])
def test_a_training_of_which_one_pod_is_refused_fails_the_run_and_says_why(ends_meanwhile: bool) -> None:
    two_nodes = {"pending_seconds": 20.0, "stages": {"warmup": {"nodes": 2}}}
    cluster = made_cluster(made_config(kubernetes=two_nodes), warmup=["hangs", "no pod"])
    controller = open_controller(cluster)
    rounds(controller, 20)  # of these some 15 with one pod
    if ends_meanwhile:  # as it waits for the other one no longer
        cluster.script["warmup"].insert(0, "hangs")
        [alone] = [name for name, pod in cluster.objects["pods"].items() if pod["status"]["phase"] == "Running"]
        cluster._outcomes[alone] = 69
    with pytest.raises(StageFailed, match=r"could not start within 20 s .*: no pod can be created: pods are forbidden: exceeded quota"):
        rounds(controller, 15)


def test_a_training_whose_pods_were_refused_longer_than_one_has_waited_for_a_node_names_the_refusal() -> None:
    two_nodes = {"pending_seconds": 20.0, "stages": {"warmup": {"nodes": 2}}}
    cluster = made_cluster(made_config(kubernetes=two_nodes), warmup=["no pod"])
    controller = open_controller(cluster)
    rounds(controller, 14)
    cluster.script["warmup"].insert(0, "unschedulable")  # the quota has room for one
    with pytest.raises(StageFailed, match=r"could not start within 20 s .*: no pod can be created: pods are forbidden: exceeded quota"):
        rounds(controller, 15)


def test_the_time_of_a_training_of_which_one_pod_is_refused_begins_anew_when_a_queue_has_taken_it_back() -> None:
    settings = {"queue": "gpus", "pending_seconds": 20.0, "stages": {"warmup": {"nodes": 2}}}
    cluster = made_cluster(made_config(kubernetes=settings), warmup=["hangs", "no pod"])
    runner = open_controller(cluster).runner
    assert isinstance(runner, KubernetesRunner)
    runner.start(Task(StageId(0, "warmup"), "0" * 16), 1)
    (name,) = cluster.created_jobs
    for suspend in (False, True, False):
        cluster.patch("jobs", name, {"spec": {"suspend": suspend}})
        for pod in [*cluster.objects["pods"]]:
            cluster._remove("pods", pod)
        cluster.script["warmup"] = ["hangs", "no pod"]
        for _ in range(15):
            cluster.tick()
            runner.cache.look()
            runner.state()
    assert verdict_on(cluster.objects["jobs"][name]) is None


def test_shards_that_have_waited_for_others_may_still_wait_for_a_node_once_these_are_gone() -> None:
    cluster = made_cluster(made_config(search={"shards": 2}), generate=["hangs", "unschedulable", "unschedulable"])
    first = open_controller(cluster)
    rounds(first, 60)  # of these some 40 in which one shard runs
    running = next(name for name, pod in cluster.objects["pods"].items() if pod["status"].get("phase") == "Running")
    cluster._outcomes[running] = "disrupted"  # its node is reclaimed
    rounds(first, 15)
    first.lease.release()
    second = open_controller(cluster)  # which cannot know when a shard has run last
    rounds(second, 15)
    with pytest.raises(StageFailed, match=r"could not start within 20 s \(kubernetes.pending_seconds\): unschedulable"):
        rounds(second, 15)


def test_a_queue_may_hold_a_job_back_for_as_long_as_it_likes() -> None:
    cluster = made_cluster(made_config(kubernetes={"queue": "gpus", "pending_seconds": 20.0}), prepare=["hangs"])
    controller = open_controller(cluster)
    rounds(controller, 60)
    (attempt,) = next(iter(controller.runner.state().values()))
    assert (attempt.phase, attempt.reason) == ("pending", "waits in Kueue's queue gpus")
    (name,) = cluster.created_jobs
    cluster.patch("jobs", name, {"spec": {"suspend": False}})
    controller.runner.cache.look()
    controller.step()  # it is admitted, and its pod is not there yet
    rounds(controller, 3)
    assert verdict_on(cluster.objects["jobs"][name]) is None
    assert {pod["status"]["phase"] for pod in cluster.objects["pods"].values()} == {"Running"}
