"""A run as rows: artifacts from the store beside Jobs and pods as Kubernetes shows them. Ages are counted by hand from 12:00:00."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from itool.artifacts.manifest import FileEntry, Manifest, content_digest
from itool.artifacts.resolve import Resolution
from itool.cluster.decide_serving import ServingPod, ServingState
from itool.cluster.progress import Progress
from itool.cluster.wish import Proof, StoredArtifact, Wish
from itool.config import parse_config
from itool.names import StageName
from itool.operations.overview import RunObjects, component_rows, job_rows, stage_rows
from itool.operations.run_status import run_state
from itool.stages import StageId

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC).timestamp()
WARMUP, GENERATE = StageId(0, "warmup"), StageId(1, "generate")
KEY = "0123456789abcdef"
CONFIG = parse_config({}, ["root=s3://b/p", "runtime.backend=kubernetes", "policy.backend=vllm"])


FILES = {"a": FileEntry(size=1, sha256="0" * 64)}
DIGEST = content_digest(FILES)


def manifest(stage: StageName) -> Manifest:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    return Manifest(run="r", iteration=0, stage=stage, key=KEY, files=FILES, started=now, ended=now)


def job(stage: StageId, attempt: int = 1, key: str = KEY, *conditions: dict[str, Any], **annotations: str) -> dict[str, Any]:
    labels = {"itool/iteration": str(stage.iteration), "itool/stage": stage.name, "itool/attempt": str(attempt), "itool/key": key}
    metadata = {"name": f"r-{stage.name}-{attempt}", "labels": labels, "creationTimestamp": f"2026-11-21T11:5{attempt}:00Z"}
    status = {"startTime": f"2026-11-21T11:5{attempt}:00Z", "conditions": list(conditions)}
    return {"metadata": metadata | {"annotations": annotations}, "spec": {}, "status": status}


def pod(name: str, of: dict[str, Any], *, phase: str = "Running", shard: int | None = None, **status: Any) -> dict[str, Any]:
    state = {"running": {"startedAt": "2026-11-21T11:58:30Z"}} if phase == "Running" else {}
    labels = {"batch.kubernetes.io/job-name": of["metadata"]["name"], "app.kubernetes.io/component": "stage"}
    annotations = {} if shard is None else {"batch.kubernetes.io/job-completion-index": str(shard)}
    metadata = {"name": name, "labels": labels, "annotations": annotations, "creationTimestamp": "2026-11-21T11:58:00Z"}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(phase == "Running")}]
    shown = {"phase": phase, "conditions": conditions, "containerStatuses": [{"name": "stage", "state": state}], **status}
    return {"metadata": metadata, "spec": {"nodeName": "node-1", "containers": []}, "status": shown}


def failed(name: str, of: dict[str, Any], code: int, words: str, at: str = "11:57:00") -> dict[str, Any]:
    times = {"startedAt": "2026-11-21T11:55:00Z", "finishedAt": f"2026-11-21T{at}Z"}
    ended = {"terminated": {"exitCode": code, "reason": "Error", "message": words, **times}}
    return pod(name, of, phase="Failed", containerStatuses=[{"name": "stage", "state": ended}])


def test_a_running_stage_shows_attempt_pod_node_age_and_progress() -> None:
    made = job(WARMUP, attempt=2)
    objects = RunObjects(NOW, [job(WARMUP), made], [pod("w", made)], progress={"w": Progress(12, 40, "updates")})
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "has not run yet", KEY)}, objects)
    assert (row.state, row.attempt, row.pod, row.node, row.progress, row.reason) == ("running", 2, "w", "node-1", "12/40 updates", "")
    assert row.age_seconds == 480.0  # since the Job's start at 11:52:00
    assert row.pods[0].age_seconds == 90.0


def test_a_stage_without_a_job_says_what_it_waits_for_and_jobs_of_other_settings_do_not_count() -> None:
    objects = RunObjects(NOW, [job(WARMUP, key="f" * 16)])
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "stale", "warmup.epochs 2 -> 3", KEY)}, objects)
    assert (row.state, row.reason, row.attempt) == ("stale", "warmup.epochs 2 -> 3", None)


def test_a_done_stage_is_done_whatever_its_jobs_say() -> None:
    objects = RunObjects(NOW, [job(WARMUP)])
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "done", "up to date", KEY)}, objects)
    assert (row.state, row.reason, row.attempt) == ("done", "", None)


def test_a_done_stage_says_what_keeps_its_pod_that_may_hold_a_gpu() -> None:
    made, over = job(WARMUP), {"name": "stage", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    kept = pod("w", made, containerStatuses=[{"name": "istio-proxy", "state": {"running": {}}}, over], conditions=[])
    for pods, reason in (([pod("w", made)], ""), ([kept], "stage ended with exit code 0; its pod waits for the end of istio-proxy")):
        [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "done", "up to date", KEY)}, RunObjects(NOW, [made], pods))
        assert (row.state, row.reason) == ("done", reason)


def test_shards_show_how_many_are_stored_and_one_row_for_each_open_pod() -> None:
    made = job(GENERATE)
    waiting = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "1 Insufficient nvidia.com/gpu."}]
    pods = [pod("g2", made, shard=2, phase="Pending", conditions=waiting, containerStatuses=[]), pod("g1", made, shard=1)]
    resolution = Resolution(GENERATE, "missing", "has not run yet", KEY, shards=3, shards_done=(0,))
    [row] = stage_rows(CONFIG, {GENERATE: resolution}, RunObjects(NOW, [made], [*pods, failed("g1-first", made, 1, "error: no luck")]))
    assert (row.state, row.progress, row.pod) == ("running", "1/3 shards", None)
    assert row.reason == "unschedulable: 1 Insufficient nvidia.com/gpu."
    assert [(found.pod, found.shard, found.state) for found in row.pods] == [("g1", 1, "running"), ("g2", 2, "pending")]


def test_a_pod_that_follows_a_failed_one_says_why() -> None:
    made = job(WARMUP)
    objects = RunObjects(NOW, [made], [failed("w1", made, 69, "error: S3 at http://s3 does not answer"), pod("w2", made)])
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, objects)
    assert (row.state, row.pod, row.reason) == ("running", "w2", "1 pod failed before: S3 at http://s3 does not answer")


def test_pods_that_train_together_again_say_why_the_first_of_them_ended_not_what_the_others_lost() -> None:
    made = job(WARMUP) | {"spec": {"completions": 2}}
    before = [failed("w0", made, 1, "error: CUDA is out of memory"), failed("w1", made, 69, "error: worker 1 lost the others", "11:57:05")]
    objects = RunObjects(NOW, [made], [*before, pod("w2", made, shard=0), pod("w3", made, shard=1)])
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, objects)
    assert (row.state, row.reason) == ("running", "2 pods failed before: CUDA is out of memory")


def test_a_job_that_the_controller_ended_gives_its_reason() -> None:
    verdict = {"itool/verdict": json.dumps({"exit_code": 69, "reason": "could not start within 25 s"})}
    made = job(WARMUP, 1, KEY, {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}, **verdict)
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, RunObjects(NOW, [made]))
    assert (row.state, row.reason, row.age_seconds) == ("failed", "could not start within 25 s", None)


def test_a_cancelled_stage_has_not_failed() -> None:
    verdict = {"itool/verdict": json.dumps({"exit_code": 75, "reason": "cancelled"})}
    made = job(WARMUP, 1, KEY, {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}, **verdict)
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, RunObjects(NOW, [made]))
    assert (row.state, row.reason, row.attempt) == ("missing", "cancelled", 1)


def test_a_job_whose_last_pod_has_just_ended_still_runs() -> None:
    made = job(WARMUP)
    made["status"]["uncountedTerminatedPods"] = {"succeeded": ["uid"]}
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, RunObjects(NOW, [made]))
    assert (row.state, row.reason) == ("running", "")


def test_a_job_that_ended_well_without_an_artifact_is_said_so() -> None:
    made = job(WARMUP, 1, KEY, {"type": "Complete", "status": "True"})
    [row] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "has not run yet", KEY)}, RunObjects(NOW, [made]))
    assert (row.state, row.reason, row.attempt) == ("missing", "its Job ended well but left no artifact", 1)


def test_vllm_pods_show_the_adapter_that_they_proved_or_why_they_do_not_serve() -> None:
    pods = [pod(name, job(WARMUP)) for name in ("v1", "v2", "v3")]
    for found in pods:
        found["metadata"]["labels"] = {"app.kubernetes.io/component": "serving"}
    proofs = {"v1": Proof(generation=3, adapter="adapter-0123"), "v2": Proof(generation=3, problem="rank 64", exit_code=64)}
    serving = ServingState(replicas=2, pods=(ServingPod("v1", "serving"), ServingPod("v2", "refused", reason="rank 64", exit_code=64)))
    rows = component_rows("serving", RunObjects(NOW, pods=pods, proofs=proofs, serving=serving))
    assert [(row.pod, row.state, row.adapter, row.reason) for row in rows] == [
        ("v1", "serving", "adapter-0123", ""),
        ("v2", "refused", None, "rank 64"),
        ("v3", "running", None, ""),
    ]
    assert component_rows("controller", RunObjects(NOW, pods=pods)) == []


def controller_job(*conditions: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": "controller"}
    metadata = {"name": "r-controller-1", "labels": labels, "creationTimestamp": "2026-11-21T11:50:00Z"}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": list(conditions)}}


def test_a_controller_that_gets_no_pod_says_why() -> None:
    about = {"involvedObject": {"name": "r-controller-1"}, "metadata": {"creationTimestamp": "2026-11-21T11:59:00Z"}}
    refused = {**about, "reason": "FailedCreate", "message": "pods are forbidden: exceeded quota"}
    [row] = component_rows("controller", RunObjects(NOW, [controller_job()], events=[refused]))
    assert (row.pod, row.state, row.reason) == ("r-controller-1", "pending", "no pod can be created: pods are forbidden: exceeded quota")
    assert row.age_seconds == 600.0
    ended = failed("c", controller_job(), 69, "error: S3 does not answer")
    ended["metadata"]["labels"]["app.kubernetes.io/component"] = "controller"
    rows = component_rows("controller", RunObjects(NOW, [controller_job()], [ended], events=[refused]))
    assert [(row.pod, row.state) for row in rows] == [("c", "failed"), ("r-controller-1", "pending")]
    [row] = component_rows("controller", RunObjects(NOW, [controller_job(suspend=True)]))
    assert (row.state, row.reason) == ("pending", "suspended")


def test_a_controller_that_has_failed_says_so_also_when_its_pods_are_gone() -> None:
    over = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "pod here/c failed with exit code 64 matching"}
    made = controller_job({**over, "lastTransitionTime": "2026-11-21T11:55:00Z"})
    [row] = component_rows("controller", RunObjects(NOW, [made]))
    assert (row.state, row.age_seconds) == ("failed", 300.0)
    assert row.reason == "PodFailurePolicy: pod here/c failed with exit code 64 matching"
    last = failed("c", made, 64, "error: no such bucket")
    last["metadata"]["labels"]["app.kubernetes.io/component"] = "controller"
    [row] = component_rows("controller", RunObjects(NOW, [made], [last]))
    assert (row.pod, row.state, row.reason) == ("c", "failed", "no such bucket")  # its pod says more
    assert component_rows("controller", RunObjects(NOW, [controller_job({"type": "Complete", "status": "True"})])) == []


def test_of_a_controllers_failed_pods_the_last_is_shown() -> None:
    made = controller_job()
    pods = [failed(name, made, 69, f"error: {name}") for name in ("c1", "c2", "c3")]
    for minute, found in enumerate(pods):
        found["metadata"]["labels"]["app.kubernetes.io/component"] = "controller"
        found["metadata"]["creationTimestamp"] = f"2026-11-21T11:5{minute}:00Z"
    assert [row.pod for row in component_rows("controller", RunObjects(NOW, [made], pods))] == ["c3"]


def test_a_stage_that_waits_for_vllm_says_what_vllm_waits_for() -> None:
    prepare, evaluate = StageId(0, "prepare"), StageId(0, "evaluate")
    model, adapter = StoredArtifact(prefix="r/i0/prepare/k", digest=DIGEST), StoredArtifact(prefix="r/i0/warmup/k", digest=DIGEST)
    wish = Wish(model=model, adapter=adapter)
    resolutions = {
        prepare: Resolution(prepare, "done", "up to date", KEY, "r/i0/prepare/k", digest=DIGEST),
        WARMUP: Resolution(WARMUP, "done", "up to date", KEY, "r/i0/warmup/k", digest=DIGEST),
        evaluate: Resolution(evaluate, "missing", "has not run yet", KEY),
    }
    pending = ServingPod("v1", "pending", NOW, "unschedulable: 1 Insufficient nvidia.com/gpu.")
    rows = stage_rows(CONFIG, resolutions, RunObjects(NOW, serving=ServingState(wish, 1, (pending,))))
    assert rows[2].reason == "waits for vLLM: 0 of 1 replica ready; v1 is pending: unschedulable: 1 Insufficient nvidia.com/gpu."
    assert stage_rows(CONFIG, resolutions, RunObjects(NOW, serving=ServingState(wish)))[2].reason == "has not run yet"  # nobody asked


def test_without_the_store_the_newest_jobs_speak_alone() -> None:
    objects = RunObjects(NOW, [job(WARMUP, 2), job(WARMUP, 1), job(GENERATE, 3, "f" * 16)])
    assert [(row.stage, row.attempt, row.state) for row in job_rows(objects)] == [
        ("i0/warmup", 2, "pending"),
        ("i1/generate", 3, "pending"),
    ]


def test_one_word_for_a_run() -> None:
    [waits] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, RunObjects(NOW))
    [runs] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "missing", "", KEY)}, RunObjects(NOW, [job(WARMUP)], [pod("w", job(WARMUP))]))
    [done] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "done", "", KEY)}, RunObjects(NOW))
    [damaged] = stage_rows(CONFIG, {WARMUP: Resolution(WARMUP, "damaged", "a byte flipped", KEY)}, RunObjects(NOW))
    assert run_state([done], active=True) == "done"
    assert run_state([done, waits], active=True) == "running"
    assert run_state([done, runs], active=False) == "running"
    assert run_state([done, waits], active=False) == "stopped"
    assert run_state([done, damaged], active=False) == "failed"
    assert [run_state([done, row], active=None) for row in (runs, waits, damaged)] == ["running", "unknown", "unknown"]
