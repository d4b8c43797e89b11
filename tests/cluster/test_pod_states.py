"""The true reason of a wait or a failure, from objects as a Kubernetes 1.34 API server shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from itool.cluster.pod_states import SHARD_ANNOTATION, events_by_object, job_state, one_line, pod_state


def pod(*, phase: str = "Pending", containers: list[dict[str, Any]] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "p",
            "creationTimestamp": "2026-11-21T11:48:42Z",
            "annotations": {SHARD_ANNOTATION: "7"},
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "stage", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": {"phase": phase, "containerStatuses": containers or [], **status},
    }


def container(state: str, **values: Any) -> dict[str, Any]:
    return {"name": "stage", "state": {state: values}}


def condition(kind: str, status: str = "True", **values: Any) -> dict[str, Any]:
    return {"type": kind, "status": status, **values}


def event(name: str, reason: str, message: str, at: str = "2026-11-21T11:49:00Z") -> dict[str, Any]:
    return {"metadata": {}, "involvedObject": {"name": name}, "reason": reason, "message": message, "lastTimestamp": at}


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return container("terminated", exitCode=code, reason=reason, message=message, finishedAt="2026-11-21T11:50:00Z")


WAITING = {
    "no node has room": (
        pod(conditions=[condition("PodScheduled", "False", reason="Unschedulable", message=
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/1 nodes are available.")]),
        "unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu",
    ),
    "no image": (
        pod(containers=[container("waiting", reason="ImagePullBackOff", message='Back-off pulling image "x:1": not found')]),
        'ImagePullBackOff: Back-off pulling image "x:1": not found',
    ),
    "no Secret": (
        pod(containers=[container("waiting", reason="CreateContainerConfigError", message='secret "s3" not found')]),
        'CreateContainerConfigError: secret "s3" not found',
    ),
    "a container that keeps failing": (
        pod(containers=[container("waiting", reason="CrashLoopBackOff", message="back-off 10s") | {
            "lastState": {"terminated": {"exitCode": 64, "message": "error: root names no bucket"}}}]),
        "stage is started again after exit code 64: root names no bucket",
    ),
    "not seen by the scheduler": (pod(), "waits for the scheduler"),
}  # fmt: skip

FAILED = {
    "what the stage said last": (
        pod(phase="Failed", containers=[ended(65, '{"event": "stage started"}\nerror: data.path holds no example\n')]),
        "data.path holds no example",
    ),
    "too much memory": (pod(phase="Failed", containers=[ended(137, reason="OOMKilled")]), "OOMKilled: over the memory limit of 2Gi"),
    "killed": (
        pod(phase="Failed", containers=[ended(137, '{"event": "progress"}')]),
        "killed by signal 9 (its grace period was over, or by hand)",
    ),
    "evicted": (
        pod(phase="Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."),
        "Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.",
    ),
    "preempted": (
        pod(phase="Failed", containers=[ended(75, "interrupted: stopped after update 7")],
            conditions=[condition("DisruptionTarget", reason="PreemptionByScheduler", message="for a higher class")]),
        "disrupted: PreemptionByScheduler: for a higher class; stopped after update 7",
    ),
    "silent": (pod(phase="Failed", containers=[ended(3)]), "exit code 3"),
    "a command that does not exist": (
        pod(phase="Failed", containers=[ended(128, 'exec: "/nope": no such file', "StartError")]),
        'StartError: exec: "/nope": no such file',
    ),
    "a container that its node has forgotten": (
        pod(phase="Failed", containers=[
            ended(137, "The container could not be located when the pod was terminated", "ContainerStatusUnknown")]),
        "ContainerStatusUnknown: The container could not be located when the pod was terminated",
    ),
    "a node that started again": (pod(phase="Failed", containers=[ended(255, reason="Unknown")]), "Unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITING)
def test_a_waiting_pod_says_why(case: str) -> None:
    given, reason = WAITING[case]
    assert (pod_state(given).phase, pod_state(given).reason) == ("pending", reason)


@pytest.mark.parametrize("case", FAILED)
def test_a_failed_pod_says_why(case: str) -> None:
    given, reason = FAILED[case]
    assert (pod_state(given).phase, pod_state(given).reason) == ("failed", reason)


def test_a_volume_that_does_not_mount_stands_only_in_events() -> None:
    starting = pod(conditions=[condition("PodScheduled")], containers=[container("waiting", reason="ContainerCreating")])
    trouble = event("p", "FailedMount", 'MountVolume.SetUp failed for volume "config": configmap "c" not found')
    assert pod_state(starting).reason == "containers are being created"
    assert pod_state(starting, [trouble]).reason == f"FailedMount: {trouble['message']}"
    assert pod_state(starting, [event("p", "Pulling", 'Pulling image "x"')]).reason == 'pulling image "x"'


def test_a_running_pod_says_where_since_when_and_what_it_lacks() -> None:
    running = pod(phase="Running", containers=[container("running", startedAt="2026-11-21T11:48:44Z") | {"ready": False}])
    state = pod_state(running)
    assert (state.phase, state.node, state.shard, state.ready) == ("running", "node-1", 7, False)
    assert state.started_at is not None
    assert state.started_at - state.created_at == 2.0
    assert state.reason == "not ready: stage"
    running["status"]["conditions"] = [condition("Ready")]
    assert (pod_state(running).ready, pod_state(running).reason) == (True, "")


def test_a_sidecar_that_was_stopped_does_not_speak_for_the_pod() -> None:
    failed = pod(phase="Failed", containers=[ended(1, "error: no room")])
    failed["spec"]["initContainers"] = [{"name": "adapter-keeper", "restartPolicy": "Always"}]
    failed["status"]["initContainerStatuses"] = [ended(137) | {"name": "adapter-keeper"}]
    assert (pod_state(failed).exit_code, pod_state(failed).reason) == (1, "no room")


def test_a_container_that_the_cluster_has_added_and_that_runs_on_is_named() -> None:
    proxy = {"name": "istio-proxy", "state": {"running": {}}, "ready": True}
    beside = pod(phase="Running", containers=[proxy, ended(65, "error: no example")], conditions=[condition("Ready", "False")])
    assert pod_state(beside).reason == "stage ended with exit code 65: no example; its pod waits for the end of istio-proxy"


def test_a_container_that_is_stopped_after_the_stage_has_failed_does_not_speak_for_the_pod() -> None:
    """The kubelet lists containers by name."""
    stopped = ended(137) | {"name": "istio-proxy"}
    stopped["state"]["terminated"]["finishedAt"] = "2026-11-21T11:52:00Z"
    state = pod_state(pod(phase="Failed", containers=[stopped, ended(65, "error: data.path holds no example")]))
    assert (state.exit_code, state.reason) == (65, "data.path holds no example")


def job(*conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"name": "j", "creationTimestamp": "2026-11-21T11:48:40Z", "labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": list(conditions)}}


def named(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return given | {"metadata": given["metadata"] | {"name": name}}


def test_a_job_fails_with_the_code_and_words_of_the_pod_that_failed_it() -> None:
    message = "Container stage for pod ns/a failed with exit code 64 matching FailJob rule at index 1"
    failed = condition("Failed", reason="PodFailurePolicy", message=message, lastTransitionTime="2026-11-21T11:51:00Z")
    culprit, bystander = named("a", FAILED["what the stage said last"][0]), named("b", FAILED["silent"][0])
    for pods in ([culprit, bystander], [bystander, culprit]):
        state = job_state(job(failed), [pod_state(one) for one in pods])
        assert (state.phase, state.exit_code, state.reason) == ("failed", 65, "data.path holds no example")
    gone = job_state(job(failed), [pod_state(bystander)])
    assert (gone.exit_code, gone.reason) == (64, f"PodFailurePolicy: {message}")
    assert state.ended_at is not None
    assert state.ended_at - state.started_at == 140.0


def test_a_training_over_nodes_fails_for_the_pod_that_the_others_have_lost() -> None:
    lost = ended(69, "error: worker 1 lost the others: Connection closed by peer")
    given = job(condition("Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit"), completions=2)
    given["metadata"]["labels"]["itool/stage"] = "dpo"
    evicted = [condition("DisruptionTarget", reason="TerminationByKubelet")]
    for first, disruption, expected in (
        (ended(137, reason="OOMKilled"), [], (137, "OOMKilled: over the memory limit of 2Gi")),
        (ended(137), evicted, (69, "worker 1 lost the others: Connection closed by peer")),
        (lost, [], (69, "worker 1 lost the others: Connection closed by peer")),
    ):
        states = [
            replace(pod_state(pod(phase="Failed", containers=[one], conditions=conditions)), started_at=start, ended_at=end)
            for one, conditions, start, end in ((ended(3), [], 10.0, 15.0), (first, disruption, 60.0, 67.0), (lost, [], 50.0, 70.0))
        ]
        state = job_state(given, states)
        assert (state.exit_code, state.reason) == expected


def test_shards_fail_with_the_one_that_has_used_up_its_tries_not_with_another_that_ended_after_it() -> None:
    """A 69 or 75 of another shard, taken for the reason, would start another Job."""
    failed = condition("Failed", reason="MaxFailedIndexesExceeded", message="Job has exceeded the maximal number of failed indexes")
    over = job(failed)
    over["status"]["failedIndexes"] = "1,5-7"
    culprit = pod(phase="Failed", containers=[ended(1, "error: no room", "Error")])
    later = named("later", pod(phase="Failed", containers=[ended(69, "error: S3 is down", "Error")]))
    later["metadata"] |= {"annotations": {SHARD_ANNOTATION: "4"}, "creationTimestamp": "2026-11-21T11:59:00Z"}
    state = job_state(over, [pod_state(culprit), pod_state(later)])
    assert (state.exit_code, state.reason) == (1, "no room")
    gone = job_state(over, [pod_state(later)])
    assert (gone.exit_code, gone.reason) == (None, f"{failed['reason']}: {failed['message']}")


def test_a_job_ends_with_its_condition_not_with_its_pods() -> None:
    done = pod_state(pod(phase="Succeeded", containers=[ended(0, reason="Completed")]))
    assert job_state(job(), [done]).phase == "pending"
    assert job_state(job(condition("Complete")), [done]).phase == "succeeded"


def test_a_job_without_pods_says_why() -> None:
    assert job_state(job(), []).reason == "waits for its first pod"
    assert job_state(job(suspend=True), []).reason == "waits in Kueue's queue gpus"
    refused = event("j", "FailedCreate", 'Error creating: pods "j-1" is forbidden: exceeded quota: gpus')
    without, pausing = job_state(job(), [], [refused]), job_state(job(), [pod_state(FAILED["silent"][0])], [refused])
    assert without.reason == without.refusal == f"no pod can be created: {refused['message']}"
    assert (pausing.reason, pausing.refusal) == ("pod p ended with exit code 3; the next one follows after a pause", "")


def test_a_pod_that_a_node_turned_away_has_no_exit_code() -> None:
    away = pod(phase="Failed", reason="OutOfcpu", message="Pod was rejected: Node didn't have enough resource: cpu")
    reason = job_state(job(), [pod_state(away)]).reason
    assert reason.startswith("pod p ended with OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu; the next one")


def test_a_pod_that_never_ran_ends_a_refusal_too() -> None:
    refused = event("j", "FailedCreate", "exceeded quota: gpus", at="2026-11-21T11:48:00Z")
    evicted = pod_state(pod(phase="Failed", reason="Evicted", message="The node was low on memory"))
    assert not job_state(job(), [evicted], [refused]).refusal


@pytest.mark.parametrize(
    ("status", "phase", "reason"),
    [
        ({"succeeded": 3}, "pending", "no pod can be created: exceeded quota: gpus"),
        ({"succeeded": 3, "active": 1}, "running", ""),
        ({"succeeded": 3, "uncountedTerminatedPods": {"succeeded": ["a", "b"]}}, "pending", "no pod can be created: exceeded quota: gpus"),
        ({"succeeded": 6, "uncountedTerminatedPods": {"succeeded": ["a", "b"]}}, "running", ""),
        ({"succeeded": 8}, "running", ""),
    ],
)
def test_shards_that_are_refused_a_pod_wait_though_others_are_done(status: dict[str, Any], phase: str, reason: str) -> None:
    given = job(completions=8, parallelism=2) | {"status": status}
    state = job_state(given, [], [event("j", "FailedCreate", "exceeded quota: gpus")])
    assert (state.phase, state.reason) == (phase, reason)
    assert job_state(given, []).reason == ("waits for its next pod" if phase == "pending" else "")


def test_a_job_of_one_pod_that_has_succeeded_is_not_over_before_its_condition() -> None:
    assert job_state(job() | {"status": {"succeeded": 1}}, []).phase == "running"


def test_a_job_runs_when_any_pod_runs_and_says_what_another_waits_for() -> None:
    running = named("r", pod(phase="Running", containers=[container("running")], conditions=[condition("Ready")]))
    state = job_state(job(), [pod_state(running), pod_state(WAITING["no Secret"][0])])
    assert (state.phase, state.reason) == ("running", 'CreateContainerConfigError: secret "s3" not found')


@pytest.mark.parametrize(
    ("stage", "status", "alive", "reason"),
    [
        ("dpo", {}, 1, "no pod can be created: exceeded quota: gpus"),
        ("dpo", {}, 2, ""),
        ("dpo", {"succeeded": 1}, 1, ""),
        ("generate", {}, 1, ""),
    ],
)
def test_a_training_over_nodes_waits_for_every_pod_and_shards_for_none(stage: str, status: dict[str, Any], alive: int, reason: str) -> None:
    given = job(completions=2, parallelism=2) | {"status": status}
    given["metadata"]["labels"]["itool/stage"] = stage
    running = pod_state(pod(phase="Running", containers=[container("running")], conditions=[condition("Ready")]))
    state = job_state(given, [running] * alive, [event("j", "FailedCreate", "exceeded quota: gpus")])
    assert (state.phase, state.reason, state.refusal) == ("running", reason, reason)


def test_events_are_sorted_and_only_of_the_object() -> None:
    late, early = event("p", "b", "", "2026-11-21T11:49:09Z"), event("p", "a", "", "2026-11-21T11:49:01Z")
    assert [found["reason"] for found in events_by_object([late, event("q", "c", ""), early])["p"]] == ["a", "b"]


def test_a_long_reason_keeps_both_ends() -> None:
    text = one_line("failed " + "x" * 500 + "\n connection   refused")
    assert text.startswith("failed xxx")
    assert text.endswith("x connection refused")
    assert len(text) < 320
