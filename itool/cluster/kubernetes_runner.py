"""Runs stages as Kubernetes Jobs: an attempt of a stage is a Job, whose pods Kubernetes starts again by itself (manifests.py).

Everything that it knows lies in the cluster: Jobs carry the stage, key and attempt in their labels, so another controller, here or there,
goes on with them. A verdict of the controller's own (waited too long for a node, filled its disk twice, cancelled) is written on the Job.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from itool.artifacts.store import Store
from itool.cluster.client import Cluster
from itool.cluster.job_facts import LOGS_KEPT, VERDICT, hopeless, is_over, shards_done, task_of, trim_job, trim_pod, verdict_on
from itool.cluster.manifests import job_name, stage_job, workers_name, workers_service
from itool.cluster.objects import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, RUN_LABEL, Object
from itool.cluster.pod_logs import PodLogs
from itool.cluster.pod_states import (
    FIRST_POD,
    NEXT_POD,
    JobState,
    PodState,
    event_time,
    events_by_object,
    job_state,
    lacks_pods,
    pod_state,
    pods_at_once,
)
from itool.cluster.pods import config_object, is_leftover, owner_name, owner_object, owner_reference, taken_name
from itool.cluster.runner import Attempt, Attempts, Task
from itool.cluster.watching import Cache, View
from itool.config import RunConfig
from itool.errors import ConfigError, DependencyError, Interrupted
from itool.logs import get_logger

log = get_logger(__name__)

RELEASE_VARIABLE = "ITOOL_RELEASE_CONFIGMAP"
EVENTS_SECONDS = 5.0
MOST_LOOKED_AT = 4
LOGS_SECONDS = 15.0


@dataclass
class KubernetesRunner:
    """One run's Jobs. `open_runner` fills the cache before anything else; what is over by then is history.

    `while_stopping` is called again and again until what `cancel` stops has ended.
    """

    config: RunConfig
    cluster: Cluster
    store: Store
    clock: Callable[[], float] = time.time
    while_stopping: Callable[[], None] = lambda: None
    cache: Cache = field(init=False)
    pod_logs: PodLogs = field(init=False)
    _past: frozenset[str] = frozenset()
    _ended: dict[str, tuple[Task, Attempt]] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _events: dict[str, tuple[float, Mapping[str, Sequence[Object]]]] = field(default_factory=dict)
    _config_map: tuple[str, str] = ("", "")
    _may_adopt: bool = True
    _podless_since: dict[str, float] = field(default_factory=dict)
    _ran_at: dict[str, float] = field(default_factory=dict)
    _spoken: dict[str, tuple[float, str]] = field(default_factory=dict)
    _longest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = f"{RUN_LABEL}={self.config.run}"
        jobs = View("jobs", f"{run},{COMPONENT_LABEL}=stage", trim=trim_job)
        pods = View("pods", run, "status.phase!=Succeeded", trim=trim_pod)
        services = [View("services", run)] if self.config.has_services else []
        self.cache = Cache(self.cluster, [jobs, pods, *services])
        self.pod_logs = PodLogs(self.cluster, self.store, self.config.run)

    def remember_the_past(self) -> None:
        """Jobs that are over by now were another controller's: they count for the numbers of attempts, not as failures."""
        self._past = frozenset(job["metadata"]["name"] for job in self.cache.items("jobs") if is_over(job))

    def start(self, task: Task, attempt: int) -> None:
        """Create the attempt's Job; one of that name is this attempt, created before an answer was lost."""
        owner = self.ensure_owner()
        self._keep_meeting_point(task)
        job = stage_job(self.config, task.stage, task.key, attempt, config_map=self._ensure_config(owner), owner=owner)
        created = self.cluster.create("jobs", job)
        if created is not None:
            self.cache.put("jobs", created)

    def keep_service(self, name: str, make: Callable[[RunConfig, Object], Object]) -> None:
        """Make a Service, of the configuration and the run's owner, unless there is one of that name: looking costs no request.

        One that an earlier owner has left counts until Kubernetes has collected it. Only for runs that have Services.
        """
        if all(service["metadata"]["name"] != name for service in self.cache.items("services")):
            created = self.cluster.create("services", make(self.config, self.ensure_owner()))
            if created is not None:
                self.cache.put("services", created)

    def state(self) -> Attempts:
        """Every attempt whose Job is there, and those that failed before theirs expired. Raises ClusterDown while nobody answers."""
        pods: dict[str, list[Object]] = defaultdict(list)
        for pod in self.cache.items("pods"):
            pods[pod["metadata"]["labels"].get(JOB_LABEL, "")].append(pod)
        jobs = {job["metadata"]["name"]: job for job in self.cache.items("jobs")}
        self._forget_all_but(jobs.keys())
        found: dict[Task, list[Attempt]] = defaultdict(list)
        for name, job in jobs.items():
            if name not in self._settled:
                self._tend_logs(job, pods[name])
            task, attempt = self._ended.get(name) or self._read(job, pods[name])
            found[task].append(attempt)
        for task, attempt in (ended for name, ended in self._ended.items() if name not in jobs):
            found[task].append(attempt)
        return {task: tuple(sorted(attempts, key=lambda attempt: attempt.number)) for task, attempts in found.items()}

    def logs(self, task: Task, attempt: int, offset: int = 0) -> bytes:
        """What the attempt's pods have written, one after the other; where several run side by side only the first, of many nothing."""
        return self.pod_logs.text(job_name(self.config, task.stage, task.key, attempt), offset)

    def stop(self, task: Task, attempt: int, reason: str) -> None:
        """End a Job that another controller left behind."""
        name = job_name(self.config, task.stage, task.key, attempt)
        for job in self._active():
            if job["metadata"]["name"] == name and verdict_on(job) is None:
                self._end(job, Interrupted.exit_code, reason)

    def cancel(self, grace_seconds: float) -> None:
        """End every Job that is not over; its pods get SIGTERM and their grace period."""
        for job in self._active():
            self._end(job, Interrupted.exit_code, "cancelled")
        deadline = self.clock() + grace_seconds
        while self._active() and self.clock() < deadline:
            self.while_stopping()
            self.cache.wait(1.0)

    def detach(self, grace_seconds: float) -> None:
        """Jobs live on without a controller."""

    def settle(self, seconds: float) -> None:
        """Wait until the last pods have ended and all logs are stored or given up: a manifest finishes the run, before its pod ends."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(DependencyError):
            while any(job["metadata"]["name"] not in self._settled for job in self.cache.items("jobs")) and time.monotonic() < deadline:
                self.cache.wait(1.0)
                self.state()

    def close(self) -> None:
        """Store the logs of what has ended, and stop watching."""
        self.pod_logs.close(LOGS_SECONDS)
        self.cache.stop()

    def _forget_all_but(self, jobs: Set[str]) -> None:
        """A Job that was removed may come again under its name. How one failed is remembered, as an outage may outlast `keep_seconds`."""
        for name in self._ended.keys() - jobs:
            _, attempt = self._ended[name]
            if attempt.past or attempt.phase == "succeeded":
                del self._ended[name]
        remembered: tuple[dict[str, Any], ...] = (
            self._events, self._spoken, self._podless_since, self._ran_at, self._longest,
        )  # fmt: skip
        for known in remembered:
            for name in known.keys() - jobs:
                del known[name]
        self.pod_logs.lose(jobs)
        self._settled &= jobs
        self._past &= jobs

    def _active(self) -> list[Object]:
        return [job for job in self.cache.items("jobs") if not is_over(job)]

    def _read(self, job: Object, pods: Sequence[Object]) -> tuple[Task, Attempt]:
        """The attempt that a Job is. One that is over is read once."""
        name, verdict = job["metadata"]["name"], verdict_on(job)
        _, events = self._events.get(name, (0.0, {}))
        states = [pod_state(pod, events.get(pod["metadata"]["name"], ())) for pod in pods]
        found = self._job_state(job, states, events.get(name, ()))
        if found.phase == "failed" and verdict is None and name not in self._past:
            states = self._with_culprit(name, states)
            found = job_state(job, states)
        failed_pods = int((job.get("status") or {}).get("failed") or 0)
        ran = [self._longest.get(name, 0.0), *(state.seconds_run(self.clock()) for state in states)]
        self._longest[name] = max(ran)  # also of a pod that goes with its node
        attempt = Attempt(
            int(job["metadata"]["labels"][ATTEMPT_LABEL]),
            found.phase,
            found.exit_code,
            f"{found.reason} ({failed_pods} pods failed)" if found.phase == "failed" and failed_pods > 1 else found.reason,
            found.started_at,
            found.ended_at,
            shards_done=shards_done(job),
            past=name in self._past,
            longest_pod_seconds=self._longest[name],
        )
        if verdict is not None:
            code, reason = verdict
            attempt = replace(attempt, exit_code=code if attempt.over else None, reason=reason, final=True)
        if attempt.over:
            self._ended[name] = (task_of(job), attempt)
            self._events.pop(name, None)
        elif verdict is None and not is_over(job):
            self._keep_meeting_point(task_of(job))
            self._judge(job, found, states)
        return task_of(job), attempt

    def _job_state(self, job: Object, states: Sequence[PodState], events: Sequence[Object]) -> JobState:
        """What a Job does, where what its pods have said before fills the gaps between one pod and the next."""
        name = job["metadata"]["name"]
        spoken_at, spoken = self._spoken.get(name, (0.0, ""))
        events = [event for event in events if states or event_time(event) >= spoken_at]  # a pod ends a refusal
        found = job_state(job, states, events)
        if states:
            self._spoken[name] = (self.clock(), found.reason)
        if not states and name in self._spoken and found.reason in (FIRST_POD, NEXT_POD):
            return replace(found, reason=f"{NEXT_POD}; the last one: {spoken}" if spoken else NEXT_POD)
        return found

    def _with_culprit(self, job: str, states: Sequence[PodState]) -> list[PodState]:
        """A failed Job's pods as the server has them: its failure may be heard of before, or without, the end of the pod that failed it."""
        pods, _ = self.cluster.list("pods", f"{JOB_LABEL}={job}", trim=trim_pod)
        for pod in pods:
            self.cache.put("pods", pod)  # whose logs are then waited for
        return list({state.name: state for state in [*states, *map(pod_state, pods)]}.values())

    def _keep_meeting_point(self, task: Task) -> None:
        """The Service through which the pods of a training that spans nodes find each other."""
        if self.config.kubernetes.pod(task.stage.name).nodes > 1:
            self.keep_service(workers_name(self.config.run), workers_service)

    def _tend_logs(self, job: Object, pods: Sequence[Object]) -> None:
        """Have the pods' logs kept; a Job that is over may go once they all are. What was given up is left to the next controller."""
        name = job["metadata"]["name"]
        if LOGS_KEPT not in (job["metadata"].get("annotations") or {}):
            self.pod_logs.look(job, pods)
            kept = self.pod_logs.are_kept(job) if is_over(job) else None
            if kept is None:
                return
            if kept:
                annotations, spec = {LOGS_KEPT: "true"}, {"ttlSecondsAfterFinished": self.config.kubernetes.keep_seconds}
                self.cluster.patch("jobs", name, {"metadata": {"annotations": annotations}, "spec": spec})
            self.pod_logs.forget(name)
        self._settled.add(name)

    def _judge(self, job: Object, found: JobState, states: Sequence[PodState]) -> None:
        """End a Job that Kubernetes would keep for ever, and look for the events of one that cannot start."""
        name, now = job["metadata"]["name"], self.clock()
        turn_at, held_back = self._turn_at(job, states), job["spec"].get("suspend")
        waits = [(max(state.created_at, turn_at), state.reason) for state in states if state.phase == "pending"]
        if not held_back and (found.refusal or (found.phase == "pending" and not states)):
            waits.append((self._podless_since.setdefault(name, now), found.refusal or found.reason))
        elif held_back or pods_at_once(job) == 1 or not lacks_pods(job, states):  # workers that end for want of another end no refusal
            self._podless_since.pop(name, None)
        verdict = hopeless(job, states, waits, now, self.config.kubernetes.pending_seconds)
        if verdict is not None:
            self._end(job, *verdict)
        elif found.phase == "pending" or (states and lacks_pods(job, states)):
            self._look_at_events(name, [state.name for state in states if state.phase == "pending"])

    def _turn_at(self, job: Object, states: Sequence[PodState]) -> float:
        """Since when a shard that waits could have had another one's place: the last time that one ran, as far as this controller knows."""
        if shards_done(job) is None:
            return 0.0
        name = job["metadata"]["name"]
        if name not in self._ran_at or any(state.phase == "running" for state in states):
            self._ran_at[name] = self.clock()
        return self._ran_at[name]

    def _end(self, job: Object, exit_code: int, reason: str) -> None:
        """Have Kubernetes fail a Job: its pods get their grace period, and it stays as a record. One that Kueue holds back just goes."""
        name = job["metadata"]["name"]
        if job["spec"].get("suspend"):
            self.cluster.delete("jobs", name)
            return
        text = json.dumps({"exit_code": exit_code, "reason": reason})
        changed = self.cluster.patch("jobs", name, {"metadata": {"annotations": {VERDICT: text}}, "spec": {"activeDeadlineSeconds": 1}})
        if changed is not None:
            self.cache.put("jobs", changed)

    def _look_at_events(self, job: str, pods: Sequence[str]) -> None:
        """What conditions do not say (quota, Pod Security, a volume that is missing) stands in events only."""
        now = self.clock()
        looked_at, known = self._events.setdefault(job, (now, {}))  # one that starts soon needs none
        if now - looked_at < EVENTS_SECONDS:
            return
        names = [job, *pods][:MOST_LOOKED_AT]
        with contextlib.suppress(DependencyError):
            events = [event for name in names for event in self.cluster.list("events", fields=f"involvedObject.name={name}")[0]]
            known = events_by_object(events)
        self._events[job] = (now, known)

    def ensure_owner(self) -> Object:
        """The run's owner object, created when it is missing. Raises ConfigError when it belongs to another root.

        One that nobody owns, as a laptop creates it, is given to the release that continues the run; one that somebody owns stays his.
        """
        name = owner_name(self.config.run)
        for _ in range(2):
            found = self.cluster.get("configmaps", name) or self.cluster.create("configmaps", owner_object(self.config, self._release()))
            if found is not None and (taken := taken_name(found, self.config)):
                raise ConfigError(taken[0], remedy=taken[1])
            if found is not None and not found["metadata"].get("ownerReferences") and (release := self._release()):
                found = self._given_to(release, found)
            if found is not None:
                return found
        raise DependencyError(f"configmap {name} appears and vanishes", remedy="Is another controller deleting it?")

    def _given_to(self, release: Object, owner: Object) -> Object | None:
        """The owner object after it was given to a release, or as it is where an admission rule forbids that; None when it is gone.

        Kubernetes' OwnerReferencesPermissionEnforcement wants the right to delete the object, which a controller does not have.
        """
        name = owner["metadata"]["name"]
        if not self._may_adopt:
            return owner
        try:
            return self.cluster.patch("configmaps", name, _adoption(owner, release))
        except ConfigError as error:
            self._may_adopt = False
            remedy = f"after uninstalling, kubectl -n {self.cluster.namespace} delete configmap {name}"
            log.warning("the run stays without its release", reason=str(error), remedy=remedy)
            return owner

    def _release(self) -> Object | None:
        """The chart's ConfigMap, when a chart started this controller: uninstalling it then collects the run's objects."""
        name = os.environ.get(RELEASE_VARIABLE)
        return self.cluster.get("configmaps", name) if name else None

    def _ensure_config(self, owner: Object) -> str:
        """The name of the ConfigMap with the pods' configuration, created when this owner has none yet.

        Raises DependencyError while one of an earlier owner is there, which Kubernetes is about to collect.
        """
        name, uid = self._config_map
        if uid != owner["metadata"]["uid"]:
            wanted = config_object(self.config, self.cluster.namespace, owner)
            name = str(wanted["metadata"]["name"])
            found = self.cluster.create("configmaps", wanted) or self.cluster.get("configmaps", name)
            if found is None or is_leftover(found, owner):
                remedy = f"Wait, or delete it: kubectl -n {self.cluster.namespace} delete configmap {name}"
                raise DependencyError(f"configmap {name} of an earlier installation is still being removed", remedy=remedy)
            self._config_map = (name, owner["metadata"]["uid"])
        return name


def _adoption(owner: Object, release: Object) -> Object:
    """The change that gives an owner object to a release. The version has the API server refuse it when somebody else was quicker."""
    return {"metadata": {"resourceVersion": owner["metadata"]["resourceVersion"], "ownerReferences": [owner_reference(release)]}}


def open_runner(config: RunConfig, cluster: Cluster, store: Store) -> KubernetesRunner:
    """A runner that has looked at the cluster. Raises ConfigError when we may not, DependencyError when it does not answer."""
    runner = KubernetesRunner(config, cluster, store)
    runner.cache.start()
    runner.remember_the_past()
    return runner
