"""A cluster in memory that does what Kubernetes does with our Jobs: pods, retries by exit code, conditions, watches, events.

It speaks the protocol of `itool.cluster.client.Cluster`. Nothing happens by itself: `tick` moves every pod one step on (created, running,
ended). What a pod does is told by `script`: a list of outcomes per stage, each an exit code or one of the words in `Outcome`. A pod that
ends with 0 has committed its stage's artifact.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from itool.artifacts.commit import commit, join_shards
from itool.artifacts.manifest import Manifest, artifact_prefix, manifest_key
from itool.artifacts.resolve import shard_prefix
from itool.artifacts.store import Store
from itool.cluster.api_answers import ClusterDown, Gone
from itool.config import RunConfig
from itool.errors import DependencyError
from itool.stages import StageId

Object = dict[str, Any]
Outcome = int | Literal["unschedulable", "no image", "oom", "evicted", "disrupted", "no pod", "hangs", "no artifact"]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
INDEX = "batch.kubernetes.io/job-completion-index"
JOB = "batch.kubernetes.io/job-name"


class Killed(BaseException):
    """The controller's process was killed here."""


@dataclass
class InMemoryCluster:
    """`die_after` counts calls until the controller is killed; `down` makes every call fail; `gone` makes the next watch answer 410;
    a Job is complete `lag_seconds` after its last pod.
    """

    store: Store
    config: RunConfig
    script: dict[str, list[Outcome]] = field(default_factory=dict)
    namespace: str = "here"
    die_after: int | None = None
    down: bool = False
    gone: bool = False
    lag_seconds: float = 0.0
    calls: int = 0
    used: set[tuple[str, str]] = field(default_factory=set)
    now: float = 1_800_000_000.0
    created_jobs: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: defaultdict(dict))
    _log: list[tuple[str, str, Object]] = field(default_factory=list)
    _forgotten: int = 0
    _version: int = 0
    _uids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _pods: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _texts: dict[str, bytes] = field(default_factory=dict)

    # What a client can do

    def get(self, resource: str, name: str) -> Object | None:
        self._call(resource, "get")
        return self.objects[resource].get(name)

    def list(
        self, resource: str, labels: str = "", fields: str = "", *, trim: Callable[[Object], Object] = lambda item: item
    ) -> tuple[list[Object], str]:
        self._call(resource, "list")
        return [trim(item) for item in self.objects[resource].values() if _fits(item, labels, fields)], str(self._version)

    def watch(self, resource: str, version: str, labels: str = "", fields: str = "") -> Iterator[tuple[str, Object]]:
        """What has happened since; it ends at once instead of waiting. An object that no longer fits the selectors is DELETED."""
        self._call(resource, "watch")
        if self.gone:
            self.gone = False
            raise Gone("too old")
        if int(version) < self._forgotten:
            raise Gone("too old")
        for kind, changed, item in self._log[int(version) - self._forgotten :]:  # every change has the next version
            if changed == resource and _fits(item, labels, ""):
                yield (kind if _fits(item, labels, fields) else "DELETED"), item

    def forget(self, keep: int) -> None:
        """Drop all but the last changes, as a server does after a while: who watches from before them must list again."""
        dropped = max(len(self._log) - keep, 0)
        del self._log[:dropped]
        self._forgotten += dropped

    def create(self, resource: str, body: Object, *, dry_run: bool = False) -> Object | None:
        self._call(resource, "create")
        body = json.loads(json.dumps(body))  # a server keeps nothing of its client's
        name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{next(self._uids)}"
        if name in self.objects[resource]:
            return None
        metadata = {**body["metadata"], "name": name, "uid": f"uid-{next(self._uids)}", "creationTimestamp": self._time()}
        if resource == "jobs":
            self.created_jobs.append(name)
        item = self._put(resource, {**body, "metadata": metadata}, "ADDED")
        self._call(resource, "create")  # the answer may be lost
        return item

    def patch(self, resource: str, name: str, change: Object) -> Object | None:
        self._call(resource, "patch")
        found = self.objects[resource].get(name)
        version = change.get("metadata", {}).get("resourceVersion")
        if found and version and version != found["metadata"].get("resourceVersion"):
            raise ClusterDown("409 the object has been modified")
        return None if found is None else self._put(resource, merged(found, change))

    def delete(self, resource: str, name: str) -> bool:
        self._call(resource, "delete")
        if name not in self.objects[resource]:
            return False
        for pod in self._pods_of(self.objects[resource][name]):
            self._remove("pods", pod["metadata"]["name"])
        self._remove(resource, name)
        return True

    def pod_log(self, name: str, container: str, *, timestamps: bool = False, **_: Any) -> Iterator[bytes]:
        self._call("pods/log", "get", count=False)  # called from threads
        if name in self.objects["pods"]:
            lines = self._texts.get(name, b"").splitlines(keepends=True)
            yield b"".join(line if timestamps else line.partition(b" ")[2] for line in lines)

    # What the cluster does

    def tick(self) -> None:
        """One step of everything: a second passes."""
        self.now += 1.0
        for job in list(self.objects["jobs"].values()):
            if not _is_over(job) and not job["spec"].get("suspend"):
                self._tick_job(job)

    def _tick_job(self, job: Object) -> None:
        pods = self._pods_of(job)
        if (job.get("status") or {}).get("complete_at", math.inf) <= self.now:
            self._end(job, "Complete", "", "")
            return
        if "activeDeadlineSeconds" in job["spec"]:
            for pod in pods:
                if pod["status"]["phase"] in ("Pending", "Running"):
                    self._remove("pods", pod["metadata"]["name"])
            self._end(job, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        for pod in pods:
            self._tick_pod(job, pod)
        if not _is_over(self.objects["jobs"][job["metadata"]["name"]]):
            self._replace_pods(self.objects["jobs"][job["metadata"]["name"]])

    def _replace_pods(self, job: Object) -> None:
        """Create the pods that are missing: one per index (or one alone) that has not succeeded, up to the parallelism."""
        spec, status = job["spec"], job.get("status") or {}
        done, active = set(status.get("done") or []), self._active(job)
        wanted = [index for index in range(spec["completions"]) if index not in done and index not in active]
        for index in wanted[: max(0, spec["parallelism"] - len(active))]:
            self._create_pod(job, index)
        count = len(self._active(job))
        if (status.get("active") or 0) != count:
            self._put("jobs", merged(job, {"status": {"active": count}}))

    def _active(self, job: Object) -> set[int]:
        return {_index(pod) for pod in self._pods_of(job) if pod["status"]["phase"] in ("Pending", "Running")}

    def _pods_of(self, job: Object) -> Sequence[Object]:
        pods = self.objects["pods"]
        return [pods[name] for name in self._pods[job["metadata"]["name"]] if name in pods]

    def _create_pod(self, job: Object, index: int) -> None:
        labels = job["spec"]["template"]["metadata"]["labels"]
        name = f"{job['metadata']['name']}-{index}-{next(self._uids)}"
        outcomes = self.script.get(labels["itool/stage"], [])
        outcome = outcomes.pop(0) if outcomes else 0
        if outcome == "no pod":
            self.objects["events"][name] = {
                "metadata": {"name": name, "creationTimestamp": self._time()},
                "involvedObject": {"name": job["metadata"]["name"]},
                "type": "Warning",
                "reason": "FailedCreate",
                "message": "pods are forbidden: exceeded quota",
            }
            outcomes.insert(0, outcome)
            return
        self._outcomes[name] = outcome
        self._pods[job["metadata"]["name"]].append(name)
        indexed = {INDEX: str(index)} if job["spec"].get("completionMode") == "Indexed" else {}
        metadata = {
            "name": name,
            "uid": f"uid-{name}",
            "labels": {**labels, JOB: job["metadata"]["name"]},
            "annotations": indexed,
            "creationTimestamp": self._time(),
        }
        self._put("pods", {"metadata": metadata, "spec": job["spec"]["template"]["spec"], "status": {"phase": "Pending"}}, "ADDED")

    def _tick_pod(self, job: Object, pod: Object) -> None:
        """Pending, running, ended."""
        name, phase = pod["metadata"]["name"], pod["status"]["phase"]
        outcome = self._outcomes[name]
        if phase == "Pending" and outcome in ("unschedulable", "no image"):
            self._put("pods", {**pod, "status": _WAITING[outcome]})
        elif phase == "Pending":
            running = {"name": "stage", "state": {"running": {"startedAt": self._time()}}, "ready": True}
            ready = {"type": "Ready", "status": "True"}
            self._put("pods", {**pod, "status": {"phase": "Running", "containerStatuses": [running], "conditions": [ready]}})
        elif phase == "Running" and outcome != "hangs":
            self._end_pod(job, pod, outcome)

    def _end_pod(self, job: Object, pod: Object, outcome: Outcome) -> None:
        name, code = pod["metadata"]["name"], _EXIT_CODES.get(outcome, outcome)
        if outcome == 0:
            try:
                self._work(pod)
            except DependencyError:
                code = outcome = 69
        said = "done" if code == 0 else f"error: told to end with {outcome}"
        self._texts[name] = f"2026-01-01T00:00:00.5Z started\n2026-01-01T00:00:01Z {said}\n".encode()
        [before] = pod["status"]["containerStatuses"]
        times = {"startedAt": before["state"]["running"]["startedAt"], "finishedAt": self._time()}
        ended = {"exitCode": code, "message": said, "reason": "OOMKilled" if outcome == "oom" else "Error", **times}
        status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "stage", "state": {"terminated": ended}}]}
        if outcome in ("evicted", "disrupted"):
            status["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
        if outcome == "evicted":
            status |= {"reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi".'}
        self._put("pods", {**pod, "status": status})
        self._count(self.objects["jobs"][job["metadata"]["name"]], pod, 0 if code == 0 else int(code), outcome)

    def _count(self, job: Object, pod: Object, code: int, outcome: Outcome) -> None:
        """What a pod's end means for its Job: podFailurePolicy, then the limits."""
        spec, status, index = job["spec"], dict(job.get("status") or {}), _index(pod)
        if code == 0:
            done = sorted({*(status.get("done") or []), index})
            job = self._put("jobs", merged(job, {"status": {"done": done, "succeeded": len(done)}}))
            if len(done) == spec["completions"]:
                self._put("jobs", merged(job, {"status": {"complete_at": self.now + self.lag_seconds, "active": 0}}))
            return
        action = _action(spec["podFailurePolicy"]["rules"], code, disrupted=outcome in ("evicted", "disrupted"))
        if action == "FailJob":
            name = pod["metadata"]["name"]
            self._fail(job, "PodFailurePolicy", f"Container stage for pod here/{name} failed with exit code {code} matching")
        elif action is None:
            failed = {**(status.get("failures") or {}), str(index): (status.get("failures") or {}).get(str(index), 0) + 1}
            job = self._put("jobs", merged(job, {"status": {"failures": failed, "failed": sum(failed.values())}}))
            if "backoffLimitPerIndex" in spec and failed[str(index)] > spec["backoffLimitPerIndex"]:
                job = self._put("jobs", merged(job, {"status": {"failedIndexes": str(index)}}))
                self._fail(job, "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes")
            elif "backoffLimit" in spec and sum(failed.values()) > spec["backoffLimit"]:
                self._fail(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    def _fail(self, job: Object, reason: str, message: str) -> None:
        """The pods that still run are deleted: they end with a checkpoint, and are there until their node has put everything away."""
        for pod in self._pods_of(job):
            if pod["status"]["phase"] == "Running":
                ended = {"exitCode": 75, "message": "interrupted: stage was stopped", "reason": "Error", "finishedAt": self._time(1.0)}
                status = {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": {"terminated": ended}}]}
                self._put("pods", merged(pod, {"metadata": {"deletionTimestamp": self._time(30.0)}, "status": status}))
        self._end(job, "Failed", reason, message)

    def _end(self, job: Object, kind: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": self._time()}
        self._put("jobs", merged(job, {"status": {"conditions": [condition], "active": 0, "completionTime": self._time()}}))

    def _work(self, pod: Object) -> None:
        """Commit what the stage would have written."""
        labels = pod["metadata"]["labels"]
        stage, key = StageId(int(labels["itool/iteration"]), labels["itool/stage"]), labels["itool/key"]
        prefix = artifact_prefix(self.config.run, stage, key)
        if self.store.size(manifest_key(prefix)) is not None:
            return
        shards, now = self.config.search.shards if stage.name == "generate" else 1, datetime.now(UTC)
        draft = Manifest(
            run=self.config.run, iteration=stage.iteration, stage=stage.name, key=key, files={}, started=now, ended=now,
            shard=_index(pod), shards=shards,
        )  # fmt: skip
        commit_rows(self.store, prefix, draft)

    def _put(self, resource: str, item: Object, kind: str = "MODIFIED") -> Object:
        self._version += 1
        stamped: Object = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}
        self.objects[resource][item["metadata"]["name"]] = stamped
        self._log.append((kind, resource, stamped))
        return stamped

    def _remove(self, resource: str, name: str) -> None:
        self._version += 1
        item = self.objects[resource].pop(name)
        self._log.append(("DELETED", resource, {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}))

    def _call(self, resource: str, verb: str, *, count: bool = True) -> None:
        self.used.add((resource, verb))
        if self.down:
            raise ClusterDown("the API server is down")
        if not count:
            return
        self.calls += 1
        if self.die_after is not None:
            if self.die_after == 0:
                raise Killed
            self.die_after -= 1

    def _time(self, later: float = 0.0) -> str:
        return datetime.fromtimestamp(self.now + later, UTC).isoformat().replace("+00:00", "Z")


def commit_rows(store: Store, prefix: str, draft: Manifest, on_committed: Callable[[], None] = lambda: None) -> None:
    """Commit one row as the artifact of a draft; the last of several shards joins them, after `on_committed`."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        output = Path(folder) / "output"
        output.mkdir()
        (output / "rows.jsonl").write_text(f'{{"key": "{draft.key}", "shard": {draft.shard}}}\n')
        commit(store, shard_prefix(prefix, draft.shard, draft.shards), output, draft)
        on_committed()
        if draft.shards > 1:
            join_shards(store, prefix, draft.shards, Path(folder))


_EXIT_CODES: dict[Outcome, int] = {"oom": 137, "evicted": 137, "disrupted": 143, "no artifact": 0}

_WAITING: dict[Outcome, Object] = {
    "unschedulable": {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: too few GPUs"}],
    },
    "no image": {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "stage", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}],
    },
}


def _action(rules: list[Object], code: int, *, disrupted: bool) -> str | None:
    for rule in rules:
        if "onPodConditions" in rule:
            if disrupted:
                return str(rule["action"])
        elif code in rule["onExitCodes"]["values"]:
            return str(rule["action"])
    return None


def _fits(item: Object, labels: str, fields: str) -> bool:
    own = item["metadata"].get("labels") or {}
    if any(own.get(key) != value for key, _, value in (part.partition("=") for part in labels.split(",") if part)):
        return False
    return all(_is_selected(item, selector) for selector in fields.split(",") if selector)


def _is_selected(item: Object, selector: str) -> bool:
    """`path=value` or `path!=value`, of the paths by which a server selects what we ask for; others it refuses as well."""
    path, _, wanted = selector.partition("=")
    path, negated = path.removesuffix("!"), path.endswith("!")
    if path not in ("metadata.name", "status.phase", "involvedObject.name", "type"):
        raise ValueError(f"field label not supported: {path}")
    found: Any = item
    for name in path.split("."):
        found = found[name]
    return bool(found == wanted) is not negated


def merged(item: Object, change: Object) -> Object:
    """The item after a merge patch (RFC 7396)."""
    result = dict(item)
    for key, value in change.items():
        before = result.get(key)
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(before if isinstance(before, dict) else {}, value) if isinstance(value, dict) else value
    return result


def _index(pod: Object) -> int:
    return int(pod["metadata"]["annotations"].get(INDEX, 0))


def _is_over(job: Object) -> bool:
    return bool((job.get("status") or {}).get("conditions"))
