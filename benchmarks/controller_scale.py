"""How a controller grows: time from a manifest to the next Job, requests per change, memory; and what a stage's pod reads to begin.

    python -m benchmarks.controller_scale iterations [--count 200]     # a cluster in memory, one Job per stage
    python -m benchmarks.controller_scale shards [--count 5000]        # a cluster in memory, one Job with many pods
    python -m benchmarks.controller_scale nodes [--count 500] --root s3://bucket/prefix --endpoint URL    # the cluster of KUBECONFIG

In memory everything but the controller is free: the cluster moves one second per look and stages write their artifact when their pod
ends, so what is measured is the controller's own computing, and it must not grow with what is done already. `nodes` wants simulated nodes
(KWOK: label `type=kwok`, taint `kwok.x-k8s.io/node`), whose pods end without a process: this script writes the artifacts in their place.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from itool.artifacts.commit import commit
from itool.artifacts.manifest import Manifest, artifact_prefix
from itool.artifacts.resolve import Resolution, resolve, resolve_one
from itool.artifacts.store import FolderStore, Store, open_store
from itool.cluster.client import Cluster, open_cluster
from itool.cluster.controller import Controller, rules_of
from itool.cluster.job_facts import task_of
from itool.cluster.kubernetes_runner import KubernetesRunner, open_runner
from itool.cluster.leases import StoreLease
from itool.cluster.progress import NoWatcher
from itool.cluster.run_events import RunEvents
from itool.config import RunConfig, parse_config
from itool.stages import StageId, stage_ids
from tests.cluster.in_memory_cluster import InMemoryCluster
from tests.fakes.counted_store import CountedStore

MEMORY_FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
PARTS = 4
"""Figures are given for each quarter of a run, so that growth shows."""
_FRAMES = 8
"""How many calls up an allocation is traced: enough to tell the simulated cluster's from the controller's."""


def main() -> None:
    """Run one of the three and print its figures."""
    options = _read_options()
    if options.memory:
        _grow_table_of_names()
        tracemalloc.start(_FRAMES)
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER) as folder:
        if options.what == "nodes":
            _on_nodes(options)
        elif options.what == "shards":
            _in_memory(FolderStore(Path(folder)), _config(iterations=1, shards=options.count))
        else:
            _in_memory(FolderStore(Path(folder)), _config(iterations=options.count, shards=1))


def write_artifact(store: Store, config: RunConfig, stage: StageId, key: str) -> None:
    """What a stage would leave: one small file and its manifest."""
    now = datetime.now(UTC)
    draft = Manifest(run=config.run, iteration=stage.iteration, stage=stage.name, key=key, files={}, started=now, ended=now)
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER) as folder:
        (Path(folder) / "rows.jsonl").write_text(f'{{"key": "{key}"}}\n')
        commit(store, artifact_prefix(config.run, stage, key), Path(folder), draft)


class Simulated(InMemoryCluster):
    """The tests' cluster, without what would grow in it: it forgets the past, and removes Jobs whose logs are kept as Kubernetes does.

    Where memory is counted its answers are copies, as from a server: what the controller keeps of them is then the controller's.
    """

    pods_ended = 0
    watches = 0

    def get(self, *arguments: Any) -> Any:
        return _copied(super().get(*arguments))

    def list(self, *arguments: Any, **options: Any) -> Any:
        return _copied(super().list(*arguments, **options))

    def watch(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        self.watches += 1  # one per look here; against a server one per view and half minute
        return map(_copied, super().watch(*arguments, **options))

    def create(self, resource: str, *arguments: Any, **options: Any) -> Any:
        made = super().create(resource, *arguments, **options)
        self.calls -= 1  # the tests' cluster counts the answer too, which may be lost there
        if resource == "events" and made is not None:
            del self.objects["events"][made["metadata"]["name"]]
        return _copied(made)

    def patch(self, *arguments: Any) -> Any:
        return _copied(super().patch(*arguments))

    def tick(self) -> None:
        super().tick()
        for job in list(self.objects["jobs"].values()):
            if "ttlSecondsAfterFinished" in job["spec"] and self.now - _created(job) > 60.0:
                self.delete("jobs", job["metadata"]["name"])
                self.calls -= 1  # the cluster's own doing
        self.forget(keep=min(2_000, 200 + 5 * len(self.objects["pods"])))

    def _work(self, pod: dict[str, Any]) -> None:
        """Only the last pod writes: the controller reads whole artifacts."""
        self.pods_ended += 1
        labels = pod["metadata"]["labels"]
        job = self.objects["jobs"][labels["batch.kubernetes.io/job-name"]]
        if len((job.get("status") or {}).get("done") or []) + 1 == job["spec"]["completions"]:
            stage = StageId(int(labels["itool/iteration"]), labels["itool/stage"])
            write_artifact(self.store, self.config, stage, labels["itool/key"])


@dataclass
class Rounds:
    """CPU seconds of each round, those of rounds that created a Job once more, and memory after each quarter of `jobs`."""

    jobs: int
    seconds: list[float] = field(default_factory=list)
    with_job: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], Any], jobs: Callable[[], int]) -> Any:
        before, began = jobs(), time.thread_time()
        result = work()
        spent = time.thread_time() - began
        self.seconds.append(spent)
        if jobs() > before:
            self.with_job.append(spent)
            if tracemalloc.is_tracing() and jobs() * PARTS // self.jobs > before * PARTS // self.jobs:
                self.memory_mib.append(held_mib())
        return result


def _in_memory(store: FolderStore, config: RunConfig) -> None:
    cluster = Simulated(store, config)
    runner = KubernetesRunner(config, cluster, store, clock=lambda: cluster.now)  # type: ignore[arg-type] # the tests' cluster
    lease = StoreLease(store, config.run, clock=lambda: cluster.now)
    lease.acquire()
    runner.cache.start(follow=False)
    runner.remember_the_past()
    rounds = Rounds(len(stage_ids(config)))
    events = RunEvents(cluster, runner.ensure_owner, NoWatcher())  # type: ignore[arg-type] # as above
    controller = Controller(config, store, runner, lease, events, rules=rules_of(config), clock=lambda: cluster.now, sleep=lambda _: None)
    created = lambda: len(cluster.created_jobs)  # noqa: E731 - the counter of two measurements
    began = time.perf_counter()
    while not rounds.measure(controller.step, created):
        cluster.tick()
        runner.cache.look()
    runner.close()
    print(f"{len(cluster.created_jobs)} Jobs, {cluster.pods_ended} pods, {time.perf_counter() - began:.0f} s with the simulated cluster")
    requests = cluster.calls - cluster.watches
    print(f"requests to the API server beside watches and logs: {requests} = {requests / len(cluster.created_jobs):.1f} per Job")
    print(f"controller's computing: {sum(rounds.seconds):.1f} s in all, {1000 * sum(rounds.seconds) / cluster.pods_ended:.2f} ms per pod")
    _print_parts("round that creates a Job", rounds.with_job)
    _print_parts("any round", rounds.seconds)
    if tracemalloc.is_tracing():
        print("memory after each quarter: " + ", ".join(f"{found:.2f} MiB" for found in rounds.memory_mib))
    _print_beginning(store, config.model_copy(update={"iterations": config.iterations + 1}))


def _print_beginning(store: FolderStore, config: RunConfig) -> None:
    """The first stage after a long run: its pod finds its inputs with and without the key that the controller knows."""
    stage = StageId(config.iterations, "score")
    key = str(resolve(store, config)[stage].key)
    looks: list[Callable[[Store], dict[StageId, Resolution] | None]]
    looks = [lambda counted: resolve(counted, config), lambda counted: resolve_one(counted, config, stage, key)]
    found = []
    for look in looks:
        counted, began = CountedStore(store.folder), time.process_time()
        resolved = look(counted)
        assert resolved is not None
        assert resolved[stage].key == key
        found.append((len(counted.asked), 1000 * (time.process_time() - began)))
    (all_requests, all_ms), (requests, ms) = found
    print(f"a pod of {stage} finds its inputs by {all_requests} requests and {all_ms:.0f} ms of computing without its key,", end=" ")
    print(f"by {requests} and {ms:.1f} ms with it: {all_requests / requests:.0f}x and {all_ms / ms:.0f}x")


def _on_nodes(options: argparse.Namespace) -> None:
    config = _config(iterations=1, shards=options.count, root=options.root, endpoint=options.endpoint, namespace=options.namespace)
    store = open_store(config.root, config.store)
    cluster = Timed(open_cluster(config.kubernetes.namespace), store, config)
    runner = open_runner(config, cluster, store)  # type: ignore[arg-type] # the client, with a clock around it
    lease = StoreLease(store, config.run)
    lease.acquire()
    before = resident_mib()
    controller = Controller(config, store, runner, lease, rules=rules_of(config), poll_seconds=1.0, sleep=runner.cache.wait)
    began = time.perf_counter()
    try:
        controller.run()
    finally:
        runner.close()
        lease.release()
    spent = time.perf_counter() - began
    print(f"{len(cluster.waits) + 1} Jobs, {options.count} shards on simulated nodes, {spent:.0f} s")
    requests = cluster.client.calls - cluster.own_calls - cluster.calls_of_logs
    print(f"requests to the API server: {requests} and {cluster.calls_of_logs} for the pods' logs")
    print(f"last pod with its manifest to next Job: median {median(cluster.waits.values()):.2f} s")
    for name, seconds in cluster.waits.items():
        print(f"  {name:<40} {seconds:6.2f} s")
    print(f"memory: {before:.0f} MiB before, {resident_mib():.0f} MiB at the end")


class Timed:
    """The client, with a clock. A Job's artifact is written when its pods exist, since simulated pods end as soon as they run; from the
    moment when the last of them runs (its manifest is there by then) until the next Job is created is the time that is taken.
    """

    def __init__(self, client: Cluster, store: Store, config: RunConfig) -> None:
        self.client, self.store, self.config = client, store, config
        self.waits: dict[str, float] = {}
        self.calls_of_logs = 0
        self.own_calls = 0
        self._due_at: float | None = None
        self._first = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def create(self, resource: str, body: dict[str, Any]) -> Any:
        made = self.client.create(resource, body)
        if resource == "jobs":
            if not self._first:
                self.waits[body["metadata"]["name"]] = time.perf_counter() - self._due_at if self._due_at is not None else 0.0
            self._first, self._due_at = False, None
            threading.Thread(target=self._work, args=(body,), daemon=True).start()
        return made

    def pod_log(self, *arguments: Any, **options: Any) -> Any:
        self.calls_of_logs += 1
        return self.client.pod_log(*arguments, **options)

    def _work(self, job: dict[str, Any]) -> None:
        self._wait_for(job, lambda status: int(status.get("active") or 0) + int(status.get("succeeded") or 0))
        task = task_of(job)
        write_artifact(self.store, self.config, task.stage, task.key)
        self._wait_for(job, lambda status: int(status.get("ready") or 0) + int(status.get("succeeded") or 0))
        self._due_at = time.perf_counter()

    def _wait_for(self, job: dict[str, Any], pods: Callable[[dict[str, Any]], int]) -> None:
        """Until as many pods as the Job wants have come so far, or it is over."""
        while True:
            found, _ = self.client.list("jobs", fields=f"metadata.name={job['metadata']['name']}")
            self.own_calls += 1
            status = found[0].get("status") or {} if found else {}
            if pods(status) >= job["spec"]["completions"] or status.get("conditions"):
                return
            time.sleep(0.1)


def _config(
    *, iterations: int, shards: int, root: str = "s3://bucket/runs", endpoint: str | None = None, namespace: str | None = None
) -> RunConfig:
    pods = {"gpus": 1, "cpu": "1", "memory": "1Gi", "node_selector": {"type": "kwok"}}
    pods |= {"tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}], "scratch": "0"}  # simulated nodes have no disk
    document: dict[str, Any] = {
        "run": "scale",
        "root": root,
        "iterations": iterations,
        "runtime": {"backend": "kubernetes"},
        "search": {"shards": shards},
        "store": {"endpoint_url": endpoint, "path_style": True},
        "kubernetes": {"namespace": namespace, "pods": pods, "parallel_shards": 400},
    }
    return parse_config(document)


def _copied(answer: Any) -> Any:
    return json.loads(json.dumps(answer)) if tracemalloc.is_tracing() else answer


def _grow_table_of_names() -> None:
    """Make room for what pathlib interns, each part of a path: Python's table of such names, which the whole process shares, would else
    be made anew in the midst of a run, once, with 1.8 MiB. It grows with the names that live, and does not give room back.
    """
    for name in [f"name {number}" for number in range(200_000)]:
        sys.intern(name)


def held_mib() -> float:
    """Memory that is held, without what the simulated cluster has allocated, and this script for its figures."""
    gc.collect()
    ours = [tracemalloc.Filter(False, "*/in_memory_cluster.py", all_frames=True), tracemalloc.Filter(False, __file__)]
    others = tracemalloc.take_snapshot().filter_traces(ours)
    return sum(found.size for found in others.statistics("filename")) / (1 << 20)


def resident_mib() -> float:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def _created(job: dict[str, Any]) -> float:
    return datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()


def _parts(values: Sequence[float]) -> list[Sequence[float]]:
    size = max(1, len(values) // PARTS)
    return [values[start : start + size] for start in range(0, size * PARTS, size) if values[start : start + size]]


def _print_parts(name: str, values: Sequence[float]) -> None:
    medians = ", ".join(f"{1000 * median(part):.1f}" for part in _parts(values))
    print(f"{name}: median {1000 * median(values):.1f} ms, longest {1000 * max(values):.0f} ms; medians by quarter {medians} ms")


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["iterations", "shards", "nodes"])
    parser.add_argument("--count", type=int, default=None, help="iterations or shards; 200, 5000 or 500 when left out")
    parser.add_argument("--root", default="s3://itool-scale/runs", help="nodes: where artifacts go")
    parser.add_argument("--endpoint", default=None, help="nodes: S3 endpoint")
    parser.add_argument("--namespace", default=None, help="nodes: the namespace")
    parser.add_argument("--memory", action="store_true", help="in memory: count what is held; several times slower")
    options = parser.parse_args()
    options.count = options.count or {"iterations": 200, "shards": 5000, "nodes": 500}[options.what]
    return options


if __name__ == "__main__":
    main()
