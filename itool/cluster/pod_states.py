"""What a pod or a Job is doing, and why it waits or failed, in one line: pure functions over plain Kubernetes objects.

The runner and `itoolctl status` both read Kubernetes through this module, so a controller's log and a person's screen say the same.
Several failures never become a container's exit code (no room, no image, no Secret, quota): they stand in conditions, in a container's
waiting state or only in events, and are found here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from itool.cluster.last_words import last_words
from itool.cluster.objects import QUEUE_LABEL, STAGE_LABEL, Object
from itool.cluster.runner import Phase
from itool.errors import DependencyError, Interrupted
from itool.names import TRAINING_STAGES

SHARD_ANNOTATION = "batch.kubernetes.io/job-completion-index"
LONGEST_REASON = 300
FIRST_POD, NEXT_POD = "waits for its first pod", "waits for its next pod"
_NO_CAUSE = (DependencyError.exit_code, Interrupted.exit_code)
_SCHEDULER_AFTERTHOUGHT = re.compile(r"\.? (?:preemption:|no new claims)")
_STARTING = ("ContainerCreating", "PodInitializing")
_START_TROUBLE = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "NetworkNotReady", "FailedSync")


@dataclass(frozen=True)
class PodState:
    """One pod. Times are seconds since the epoch; `exit_code` is that of the container that ended it.

    `stopped`: by a deletion or a disruption.
    """

    name: str
    phase: Phase
    reason: str = ""
    node: str | None = None
    exit_code: int | None = None
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    shard: int | None = None
    ready: bool = False
    stopped: bool = False

    def seconds_run(self, now: float) -> float:
        """How long it ran, or has run by now; 0 of one that never did, or whose end nobody has seen."""
        until = now if self.phase == "running" else self.ended_at
        return until - self.started_at if until is not None and self.started_at is not None else 0.0

    @property
    def outcome(self) -> str:
        """How a pod failed: exit code and reason, or what there is of them."""
        return told_outcome(self.exit_code, self.reason)


@dataclass(frozen=True)
class JobState:
    """One Job: what its pods make of it. `exit_code` and `reason` are those of the pod that ended it.

    `refusal` says why its next pod cannot be created (a quota, an admission rule).
    """

    name: str
    phase: Phase
    reason: str = ""
    exit_code: int | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    refusal: str = ""


def pod_state(pod: Object, events: Sequence[Object] = ()) -> PodState:
    """What one pod does. `events` are its own, oldest first; only a pod that cannot start needs them."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    phase = _pod_phase(status)
    ended = _ending(pod) if phase in ("failed", "succeeded") else {}
    starts = [when for found in _statuses(status, "containerStatuses") if (when := _started(found)) is not None]
    shard = (metadata.get("annotations") or {}).get(SHARD_ANNOTATION)
    return PodState(
        name=metadata["name"],
        phase=phase,
        reason=one_line(_pod_reason(pod, phase, events)),
        node=(pod.get("spec") or {}).get("nodeName"),
        exit_code=ended.get("exitCode"),
        created_at=seconds(metadata.get("creationTimestamp")) or 0.0,
        started_at=min(starts, default=None),
        ended_at=seconds(ended.get("finishedAt")),
        shard=int(shard) if shard is not None else None,
        ready=_condition(pod, "Ready").get("status") == "True",
        stopped=bool(metadata.get("deletionTimestamp") or _disruption(pod)),
    )


def overfilled(state: PodState) -> bool:
    """Whether a pod was evicted because it stored more than its scratch folder may hold."""
    return state.phase == "failed" and "Evicted" in state.reason and "exceed" in state.reason


def job_state(job: Object, states: Sequence[PodState], events: Sequence[Object] = ()) -> JobState:
    """What a Job does, from the states of its own pods. `events` are its own, oldest first; a Job that lacks pods needs them."""
    status, name = job.get("status") or {}, job["metadata"]["name"]
    created_at = seconds(job["metadata"].get("creationTimestamp")) or 0.0
    started_at = seconds(status.get("startTime")) or created_at
    complete, failed = _condition(job, "Complete"), _condition(job, "Failed")
    if complete.get("status") == "True":
        return JobState(name, "succeeded", "", 0, started_at, seconds(status.get("completionTime")))
    if failed.get("status") == "True":
        code, reason = _job_failure(job, failed, states)
        return JobState(name, "failed", one_line(reason), code, started_at, seconds(failed.get("lastTransitionTime")))
    phase: Phase = "running" if any(state.phase == "running" for state in states) else "pending"
    if not states and _has_begun(job):
        return JobState(name, "running", "", None, started_at)  # between a pod's end and the Job's
    refusal = one_line(_refusal(job, states, events))
    return JobState(name, phase, one_line(_job_reason(job, states, refusal)), None, started_at, refusal=refusal)


def ended_well(job: Object) -> int:
    """How many of a Job's pods have succeeded."""
    status = job.get("status") or {}
    uncounted = (status.get("uncountedTerminatedPods") or {}).get("succeeded") or []
    return int(status.get("succeeded") or 0) + len(uncounted)


def pods_at_once(job: Object) -> int:
    """How many pods a Job needs at the same time: of a training that spans nodes all that have not ended well, of others one."""
    if (job["metadata"].get("labels") or {}).get(STAGE_LABEL) not in TRAINING_STAGES:
        return 1
    return int((job.get("spec") or {}).get("completions") or 1) - ended_well(job)


def lacks_pods(job: Object, states: Sequence[PodState]) -> bool:
    """Whether fewer of a Job's pods are alive than it needs at the same time."""
    return sum(state.phase in ("pending", "running") for state in states) < pods_at_once(job)


def culprit_of(job: Object, states: Sequence[PodState]) -> PodState | None:
    """The last pod that failed; of those that train together rather the one that the others have lost, after which they end with 69."""
    last = _last_failed(states)
    if last is None or last.exit_code != DependencyError.exit_code or pods_at_once(job) == 1:
        return last
    beside = [state for state in states if state.exit_code not in _NO_CAUSE and _end_time(state) >= (last.started_at or last.created_at)]
    return _last_failed(beside) or last


def events_by_object(events: Iterable[Object]) -> dict[str, list[Object]]:
    """Events by the name of the object that they are about, oldest first."""
    found: dict[str, list[Object]] = {}
    for event in sorted(events, key=event_time):
        found.setdefault((event.get("involvedObject") or {}).get("name", ""), []).append(event)
    return found


def event_time(event: Object) -> float:
    """When it was last seen."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((found for time in times if (found := seconds(time)) is not None), 0.0)


def seconds(timestamp: str | None) -> float | None:
    """A Kubernetes timestamp as seconds since the epoch."""
    return datetime.fromisoformat(timestamp).timestamp() or None if timestamp else None  # a container that never started says 1970


def told_outcome(exit_code: int | None, reason: str) -> str:
    """`exit code 65: data.path holds no example`. A pod that a node turned away, or evicted before it began, has no exit code."""
    code = f"exit code {exit_code}" if exit_code is not None else ""
    return ": ".join(part for part in (code, reason if reason != code else "") if part)


def one_line(text: str) -> str:
    """Whitespace collapsed, and a long text cut in the middle: causes stand at both ends."""
    line = " ".join(text.split())
    half = LONGEST_REASON // 2
    return line if len(line) <= LONGEST_REASON else f"{line[:half]} ... {line[-half:]}"


def _pod_phase(status: Object) -> Phase:
    known: dict[str, Phase] = {"Running": "running", "Succeeded": "succeeded", "Failed": "failed"}
    return known.get(status.get("phase", ""), "pending")


def _pod_reason(pod: Object, phase: Phase, events: Sequence[Object]) -> str:
    if phase == "failed":
        return _failure(pod)
    if phase == "succeeded":
        return ""
    if pod["metadata"].get("deletionTimestamp"):
        return _disruption(pod) or "is being stopped"
    return _waiting(pod, events) if phase == "pending" else _running_trouble(pod, events)


def _failure(pod: Object) -> str:
    """Why a failed pod failed: evicted, disrupted, over its memory, killed, or what its container said last."""
    status, ended = pod["status"], _ending(pod)
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message', '')}".removesuffix(": ")
    disruption = _disruption(pod)
    if ended.get("reason") == "OOMKilled":
        return f"OOMKilled: over the memory limit{_limit(pod, ended['container'])}"
    words = last_words(ended.get("message") or "")
    if disruption:
        return f"{disruption}{'; ' + words if words else ''}"
    if ended.get("reason") not in ("Error", "Completed", None):
        return f"{ended['reason']}: {words}".removesuffix(": ")
    if ended.get("exitCode") == 137:
        return "killed by signal 9 (its grace period was over, or by hand)"
    return words or (f"exit code {ended['exitCode']}" if "exitCode" in ended else "failed without a word from its container")


def _ending(pod: Object) -> dict[str, Any]:
    """The state of the container that decided how the pod ended (the first that failed, else the last of all), with its name."""
    ended = [
        {**found["state"]["terminated"], "container": found["name"]}
        for found in _all_statuses(pod.get("status") or {})
        if "terminated" in (found.get("state") or {}) and not _is_sidecar(pod, found["name"])
    ]
    failed = [found for found in ended if found.get("exitCode")]
    first = min(failed, key=lambda found: seconds(found.get("finishedAt")) or math.inf, default=None)  # they are listed by name
    return first or (ended[-1] if ended else {})


def _disruption(pod: Object) -> str:
    condition = _condition(pod, "DisruptionTarget")
    if condition.get("status") != "True":
        return ""
    return f"disrupted: {condition.get('reason', '')}: {condition.get('message', '')}".removesuffix(": ")


def _limit(pod: Object, container: str) -> str:
    spec = pod.get("spec") or {}
    for found in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        limit = ((found.get("resources") or {}).get("limits") or {}).get("memory")
        if found["name"] == container and limit:
            return f" of {limit}"
    return ""


def _waiting(pod: Object, events: Sequence[Object]) -> str:
    """Why a pod has not started: no node, a container that cannot start, a volume, or just not yet."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"{_lower(scheduled.get('reason', ''))}: {_SCHEDULER_AFTERTHOUGHT.split(scheduled.get('message', ''))[0]}"
    trouble = next((text for found in _all_statuses(pod.get("status") or {}) if (text := _container_trouble(found))), "")
    if trouble:
        return trouble
    warnings = [event for event in events if event.get("reason") in _START_TROUBLE]
    if warnings:
        return f"{warnings[-1]['reason']}: {warnings[-1].get('message', '')}"
    if not scheduled:
        return "waits for the scheduler"
    pulls = [event for event in events if event.get("reason") in ("Pulling", "Pulled")]
    return _lower(pulls[-1].get("message", "")) if pulls and pulls[-1]["reason"] == "Pulling" else "containers are being created"


def _container_trouble(found: Object) -> str:
    """What keeps a container from starting; empty for one that is on its way."""
    waiting = (found.get("state") or {}).get("waiting") or {}
    before = (found.get("lastState") or {}).get("terminated") or {}
    if waiting.get("reason") == "CrashLoopBackOff":
        words = "OOMKilled" if before.get("reason") == "OOMKilled" else last_words(before.get("message") or "")
        return f"{found['name']} is started again after exit code {before.get('exitCode')}{': ' + words if words else ''}"
    if not waiting or waiting.get("reason") in _STARTING:
        return ""
    return f"{waiting.get('reason')}: {waiting.get('message', '')}".removesuffix(": ")


def _running_trouble(pod: Object, events: Sequence[Object]) -> str:
    """What a running pod still lacks: a container that crashes or waits, the end of one that was added to it, or readiness."""
    trouble = next((text for found in _all_statuses(pod["status"]) if (text := _container_trouble(found))), "")
    if trouble or _condition(pod, "Ready").get("status") == "True":
        return trouble
    containers = {found["name"]: found.get("state") or {} for found in _statuses(pod["status"], "containerStatuses")}
    over, others = ([name for name, state in containers.items() if kind in state] for kind in ("terminated", "running"))
    if over and others:
        ended = containers[over[0]]["terminated"]
        outcome = told_outcome(ended.get("exitCode"), last_words(ended.get("message") or ""))
        return f"{over[0]} ended with {outcome}; its pod waits for the end of {', '.join(others)}"
    probes = [event for event in events if event.get("reason") == "Unhealthy"]
    if probes:
        return f"not ready: {probes[-1].get('message', '')}"
    unready = [found["name"] for found in _all_statuses(pod["status"]) if not found.get("ready") and "running" in found.get("state", {})]
    return f"not ready: {', '.join(unready)}" if unready else ""


def _has_begun(job: Object) -> bool:
    """Whether pods of a Job run, or all have ended well, as far as Kubernetes has counted."""
    completions = (job.get("spec") or {}).get("completions") or 1
    return bool((job.get("status") or {}).get("active")) or ended_well(job) >= completions


def _job_failure(job: Object, failed: Object, states: Sequence[PodState]) -> tuple[int | None, str]:
    """Exit code and reason of the pod that failed a Job: the one that the condition names, else the last that failed by itself, of shards
    one of those that have used up their tries.

    A Job that fails deletes the pods that still run: these end later than the culprit, with a checkpoint and exit code 75.
    """
    message, shards = failed.get("message", ""), _indexes((job.get("status") or {}).get("failedIndexes"))
    culprits = [state for state in states if state.phase == "failed"]
    named = [state for state in culprits if f"/{state.name} " in message]
    if shards:
        culprits = [state for state in culprits if state.shard in shards]
    code = re.search(r"exit code (\d+)", message)
    if code and not named:  # the pod is gone
        return int(code[1]), f"{failed.get('reason', '')}: {message}"
    culprit = culprit_of(job, named or [state for state in culprits if not state.stopped] or culprits)
    return (culprit.exit_code, culprit.reason) if culprit else (None, f"{failed.get('reason', '')}: {message}")


def _indexes(text: str | None) -> set[int]:
    """`1,3-5` as a Job's status has it."""
    bounds = [part.split("-") for part in (text or "").split(",") if part]
    return {index for found in bounds for index in range(int(found[0]), int(found[-1]) + 1)}


def _job_reason(job: Object, states: Sequence[PodState], refusal: str) -> str:
    """Why an unfinished Job's pods do not all run: suspended, not created, not started, or one failed and is replaced."""
    if (job.get("spec") or {}).get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
        return f"waits in Kueue's queue {queue}" if queue else "suspended"
    active = [state for state in states if state.phase in ("pending", "running")]
    told = next((state.reason for state in active if state.reason), "")
    if active or refusal:
        return told or refusal
    last = culprit_of(job, states)
    if last is not None:
        return f"pod {last.name} ended with {last.outcome}; the next one follows after a pause"
    return NEXT_POD if ended_well(job) else FIRST_POD


def _refusal(job: Object, states: Sequence[PodState], events: Sequence[Object]) -> str:
    """Why a Job's next pod cannot be created (a quota, an admission rule); empty while it lacks none, and for all that is known."""
    refused, last = [event for event in events if event.get("reason") == "FailedCreate"], _last_failed(states)
    if not refused or not lacks_pods(job, states):
        return ""
    if last is not None and event_time(refused[-1]) <= _end_time(last):
        return ""
    return f"no pod can be created: {refused[-1].get('message', '')}"


def _last_failed(states: Sequence[PodState]) -> PodState | None:
    return max((state for state in states if state.phase == "failed"), key=_end_time, default=None)


def _end_time(state: PodState) -> float:
    return state.ended_at or state.created_at


def _condition(item: Object, kind: str) -> Object:
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((found for found in conditions if found.get("type") == kind), {})


def _statuses(status: Object, kind: str) -> list[Object]:
    return list(status.get(kind) or [])


def _all_statuses(status: Object) -> list[Object]:
    return [*_statuses(status, "initContainerStatuses"), *_statuses(status, "containerStatuses")]


def _is_sidecar(pod: Object, container: str) -> bool:
    inits = (pod.get("spec") or {}).get("initContainers") or []
    return any(found["name"] == container and found.get("restartPolicy") == "Always" for found in inits)


def _started(found: Object) -> float | None:
    state = found.get("state") or {}
    return seconds((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
