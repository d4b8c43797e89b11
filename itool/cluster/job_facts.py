"""What a stage's Job says of itself, read from the plain object: pure, and the same for the runner, `status` and `cancel`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import cast

from itool.cluster.objects import ITERATION_LABEL, KEY_LABEL, STAGE_LABEL, Object
from itool.cluster.pod_states import PodState, ended_well, overfilled
from itool.cluster.runner import Task
from itool.errors import DependencyError, StorageError
from itool.names import StageName
from itool.stages import STAGES, StageId

VERDICT = "itool/verdict"
"""Annotation of a Job that the controller ended: {"exit_code", "reason"}."""

LOGS_KEPT = "itool/logs-kept"
"""Annotation of a Job whose pods' logs are all in the store: it may go."""

DISK_EVICTIONS = 2


def task_of(job: Object) -> Task:
    """What a Job works on."""
    labels = job["metadata"]["labels"]
    return Task(StageId(int(labels[ITERATION_LABEL]), cast(StageName, labels[STAGE_LABEL])), labels[KEY_LABEL])


def is_over(job: Object) -> bool:
    """Whether a Job is complete or has failed for good."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(found["type"] in ("Complete", "Failed") and found["status"] == "True" for found in conditions)


def shards_done(job: Object) -> int | None:
    """How many shards of a stage have ended well; None for a stage that has none."""
    if not STAGES[task_of(job).stage.name].sharded or int(job["spec"].get("completions") or 1) == 1:
        return None
    return ended_well(job)


def verdict_on(job: Object) -> tuple[int, str] | None:
    """Exit code and reason of a Job that a controller ended."""
    text = (job["metadata"].get("annotations") or {}).get(VERDICT)
    if text is None:
        return None
    document = json.loads(text)
    return int(document["exit_code"]), str(document["reason"])


def hopeless(
    job: Object, states: Sequence[PodState], waits: Sequence[tuple[float, str]], now: float, pending_seconds: float
) -> tuple[int, str] | None:
    """Exit code and reason why a Job should be ended that Kubernetes would wait for or repeat for ever; None while there is hope.

    `waits` says of every pod that has not started, or of the one that is not even there, since when it waits and why; a shard that waits
    for others does so since the last of them ran. A pod that finds no node or image waits without an end. A pod that fills its own scratch
    folder is evicted as in a disruption, which the failure policy ignores; the second one of the same shard ends the Job.
    """
    evictions = [state for state in states if overfilled(state)]
    shard, times = Counter(state.shard for state in evictions).most_common(1)[0] if evictions else (None, 0)
    if times >= DISK_EVICTIONS:
        return StorageError.exit_code, next(state.reason for state in evictions if state.shard == shard)
    if (job.get("spec") or {}).get("suspend"):
        return None
    since, reason = min(waits, default=(now, ""))
    if now - since < pending_seconds:
        return None
    words = f"could not start within {pending_seconds:.0f} s (kubernetes.pending_seconds): {reason}"
    return DependencyError.exit_code, words


def trim_job(job: Object) -> Object:
    """What is asked of a Job."""
    spec = job.get("spec") or {}
    kept = ("suspend", "completions", "parallelism")
    return {"metadata": _trim_metadata(job), "spec": {key: spec[key] for key in kept if key in spec}, "status": job.get("status") or {}}


def trim_pod(pod: Object) -> Object:
    """What is asked of a pod."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    containers = {
        kind: [{key: found[key] for key in ("name", "resources", "restartPolicy") if key in found} for found in spec.get(kind) or []]
        for kind in ("containers", "initContainers")
    }
    kept = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses")
    return {
        "metadata": _trim_metadata(pod),
        "spec": {"nodeName": spec.get("nodeName"), **containers},
        "status": {key: status[key] for key in kept if key in status},
    }


def _trim_metadata(item: Object) -> Object:
    metadata = item["metadata"]
    kept = ("name", "uid", "labels", "annotations", "creationTimestamp", "deletionTimestamp", "resourceVersion")
    return {"labels": {}} | {key: metadata[key] for key in kept if key in metadata}
