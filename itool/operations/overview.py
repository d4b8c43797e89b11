"""How a run stands, as rows: what lies in the store beside what Kubernetes says of its Jobs and pods. Pure, so that a test reads it.

It needs no controller: the artifacts, the labels of Jobs and pods, their states and events say everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from itool.artifacts.resolve import Resolution, State
from itool.cluster.decide import stages_in_turn
from itool.cluster.decide_serving import ServingState, beside_stage
from itool.cluster.job_facts import is_over, task_of, verdict_on
from itool.cluster.objects import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, KEY_LABEL, Object
from itool.cluster.pod_states import JobState, PodState, culprit_of, events_by_object, job_state, pod_state
from itool.cluster.progress import Progress
from itool.cluster.wish import Proof
from itool.config import RunConfig
from itool.errors import Interrupted
from itool.stages import StageId

RowState = State | Literal["running", "pending", "failed"]


@dataclass(frozen=True)
class RunObjects:
    """What Kubernetes and the store's small documents said of a run at one moment (`at`, seconds since the epoch)."""

    at: float
    jobs: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    progress: Mapping[str, Progress] = field(default_factory=dict)
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    serving: ServingState | None = None


@dataclass(frozen=True)
class PodRow:
    """One pod. `age_seconds` counts from its start, or its creation while it waits; `adapter` is what a vLLM pod proved to serve.

    `state` is pending, running, succeeded or failed; of a vLLM pod pending, starting, serving, refused (the adapter) or stopping.
    """

    pod: str
    state: str
    reason: str = ""
    shard: int | None = None
    node: str | None = None
    age_seconds: float | None = None
    progress: str | None = None
    ready: bool = False
    adapter: str | None = None


@dataclass(frozen=True)
class StageRow:
    """One stage of one iteration. `pods` are the newest attempt's that have not succeeded; `pod` and `node` when there is just one."""

    stage: str
    name: str
    iteration: int
    state: RowState
    reason: str = ""
    key: str | None = None
    seconds: float | None = None
    startup_seconds: float | None = None
    attempt: int | None = None
    pod: str | None = None
    node: str | None = None
    age_seconds: float | None = None
    progress: str | None = None
    pods: tuple[PodRow, ...] = ()


def stage_rows(config: RunConfig, resolutions: Mapping[StageId, Resolution], objects: RunObjects) -> list[StageRow]:
    """Every stage in running order. Of one that is done or damaged its artifact speaks, of the others the newest attempt's Job.

    A stage that is done says what keeps its pods: they may hold the GPU that the next one waits for.
    A stage whose turn it is and that has no Job yet may wait for vLLM, where that was asked for; the controller's own rule says so.
    """
    jobs, reading = _by_label(objects.jobs, KEY_LABEL), _Reading(objects)
    in_turn = stages_in_turn(config, resolutions)
    rows = []
    for stage, found in resolutions.items():
        own, row = jobs.get(found.key or "", []), _row(stage, found)
        if own and found.state not in ("done", "damaged"):
            row = reading.with_job(row, max(own, key=_attempt), found)
        elif own and found.done:
            row = replace(row, reason=reading.what_keeps(own) or row.reason)
        elif stage in in_turn and found.key and objects.serving and (objects.serving.replicas or objects.serving.pods):
            waits_for = beside_stage(config, resolutions, objects.serving, stage, objects.at).waits_for
            row = replace(row, reason=f"waits for {waits_for}") if waits_for else row
        rows.append(row)
    return rows


def job_rows(objects: RunObjects) -> list[StageRow]:
    """What the Jobs alone say, when the store cannot be asked: the newest of every stage, in the order of their creation."""
    newest: dict[StageId, Object] = {}
    for job in sorted(objects.jobs, key=lambda job: str(job["metadata"].get("creationTimestamp"))):
        if KEY_LABEL in job["metadata"]["labels"]:
            newest[task_of(job).stage] = job
    reading = _Reading(objects)
    return [reading.with_job(_row(stage, Resolution(stage, "missing", "")), job, None) for stage, job in newest.items()]


def component_rows(component: Literal["serving", "controller"], objects: RunObjects) -> list[PodRow]:
    """The pods of vLLM, each with the adapter that it proved to serve, or those of the chart's controller: of failed ones the last.

    A Job of the controller is a row of its own where it has no pod and is not complete, and where its next pod is refused.
    """
    events = events_by_object(objects.events)
    pods = of_component(component, objects.pods)
    states = [pod_state(pod, events.get(pod["metadata"]["name"], ())) for pod in pods]
    if component == "controller":  # its Job keeps every pod that ever failed
        last = max((state for state in states if state.phase == "failed"), key=lambda state: state.created_at, default=None)
        states = [state for state in states if state.phase != "failed" or state is last]
    rows = [_pod_row(state, objects) for state in states]
    by_job = _by_label(pods, JOB_LABEL)
    for job in of_component(component, objects.jobs):
        own = [pod_state(pod) for pod in by_job.get(job["metadata"]["name"], [])]
        now = job_state(job, own, events.get(job["metadata"]["name"], ()))
        if now.refusal or (not own and now.phase != "succeeded"):
            rows.append(_job_row(now, objects.at))
    known = {pod.name: pod for pod in objects.serving.pods} if objects.serving else {}
    return [replace(row, state=known[row.pod].phase, reason=known[row.pod].reason) if row.pod in known else row for row in rows]


def controller_comes(objects: RunObjects) -> bool:
    """Whether a chart's controller works or will: its Job is neither over nor suspended, though there may be no pod between two."""
    jobs = of_component("controller", objects.jobs)
    return any(not is_over(job) and not job["spec"].get("suspend") for job in jobs)


def of_component(component: str, objects: Sequence[Object]) -> list[Object]:
    """Those of the run's objects that belong to its stages, vLLM or the chart's controller."""
    return [item for item in objects if (item["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == component]


def _row(stage: StageId, found: Resolution) -> StageRow:
    manifest = found.manifest
    return StageRow(
        stage=str(stage),
        name=stage.name,
        iteration=stage.iteration,
        state=found.state,
        reason="" if found.done and found.reason == "up to date" else found.reason,
        key=found.key,
        seconds=manifest.seconds if manifest else None,
        startup_seconds=manifest.startup_seconds if manifest else None,
    )


class _Reading:
    """The objects, sorted once by whom they belong to."""

    def __init__(self, objects: RunObjects) -> None:
        self._objects = objects
        self._pods = _by_label(objects.pods, JOB_LABEL)
        self._events = events_by_object(objects.events)

    def what_keeps(self, jobs: Sequence[Object]) -> str:
        """Why pods of Jobs whose work is done still run; empty for those that are about to end."""
        states = [pod_state(pod) for job in jobs for pod in self._pods.get(job["metadata"]["name"], [])]
        return next((state.reason for state in states if state.phase == "running" and state.reason), "")

    def with_job(self, row: StageRow, job: Object, found: Resolution | None) -> StageRow:
        """A stage's row with what its Job and the Job's pods say. `found` knows which shards are stored."""
        name = job["metadata"]["name"]
        states = [pod_state(pod, self._events.get(pod["metadata"]["name"], ())) for pod in self._pods.get(name, [])]
        now, verdict = job_state(job, states, self._events.get(name, ())), verdict_on(job)
        if now.phase == "succeeded":
            return replace(row, reason="its Job ended well but left no artifact" if found else "its Job ended well", attempt=_attempt(job))
        if verdict and verdict[0] == Interrupted.exit_code and now.phase == "failed":
            return replace(row, reason=verdict[1], attempt=_attempt(job))
        open_pods = [state for state in states if state.phase in ("running", "pending")]
        shown = open_pods or [state for state in states if state.phase == "failed"]
        pods = tuple(_pod_row(state, self._objects) for state in sorted(shown, key=lambda state: (state.shard or 0, state.created_at)))
        only = pods[0] if len(pods) == 1 else None
        return replace(
            row,
            state=now.phase,
            reason=verdict[1] if verdict else now.reason or _earlier(job, states),
            attempt=_attempt(job),
            pod=only.pod if only else None,
            node=only.node if only else None,
            age_seconds=None if now.phase == "failed" else max(self._objects.at - now.started_at, 0.0),
            progress=f"{len(found.shards_done)}/{found.shards} shards" if found and found.shards > 1 else only.progress if only else None,
            pods=pods,
        )


def _pod_row(state: PodState, objects: RunObjects) -> PodRow:
    progress, proof = objects.progress.get(state.name), objects.proofs.get(state.name)
    since = state.started_at if state.started_at is not None else state.created_at
    return PodRow(
        pod=state.name,
        state=state.phase,
        reason=state.reason,
        shard=state.shard,
        node=state.node,
        age_seconds=max((state.ended_at or objects.at) - since, 0.0),
        progress=progress.text if progress and state.phase == "running" else None,
        ready=state.ready,
        adapter=(proof.adapter or None) if proof else None,
    )


def _job_row(state: JobState, at: float) -> PodRow:
    """A Job under its own name: suspended, refused a pod, or over, with its pods gone."""
    return PodRow(pod=state.name, state=state.phase, reason=state.reason, age_seconds=max((state.ended_at or at) - state.started_at, 0.0))


def _earlier(job: Object, states: Sequence[PodState]) -> str:
    """What happened to the pods before those that run now."""
    culprit, failed = culprit_of(job, states), sum(state.phase == "failed" for state in states)
    if culprit is None:
        return ""
    return f"{'1 pod' if failed == 1 else f'{failed} pods'} failed before: {culprit.reason}"


def _attempt(job: Object) -> int:
    return int(job["metadata"]["labels"][ATTEMPT_LABEL])


def _by_label(objects: Sequence[Object], label: str) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for item in objects:
        value = (item["metadata"].get("labels") or {}).get(label)
        if value is not None:
            found.setdefault(value, []).append(item)
    return found
