"""Reads what Kubernetes knows of a run: Jobs and pods by their labels, events of what is in trouble, progress from the logs. Never writes.

Works from a laptop or in a pod, with or without a living controller; three lists and a handful of log tails, however large the run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from itool.artifacts.store import Store
from itool.cluster.decide_serving import ServingState
from itool.cluster.job_facts import is_over
from itool.cluster.manifests import STAGE_CONTAINER
from itool.cluster.objects import JOB_LABEL, RUN_LABEL, Object
from itool.cluster.pod_states import PodState, lacks_pods, pod_state
from itool.cluster.progress import Progress, last_progress
from itool.cluster.serving_reader import ServingReader
from itool.cluster.wish import Proof, read_proof
from itool.config import RunConfig
from itool.errors import ItoolError
from itool.operations.overview import RunObjects, of_component

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

MOST_LOOKED_AT = 8
TAIL_LINES = 30


def read_objects(cluster: Cluster, store: Store, config: RunConfig) -> RunObjects:
    """What there is now. Jobs before pods, so that the pods of every Job that is seen are seen too; all that the store says at once."""
    labels = f"{RUN_LABEL}={config.run}"
    jobs, _ = cluster.list("jobs", labels)
    pods, _ = cluster.list("pods", labels, "status.phase!=Succeeded")
    running = [pod["metadata"]["name"] for pod in of_component("stage", pods) if pod_state(pod).phase == "running"]
    serving = [pod["metadata"]["name"] for pod in of_component("serving", pods)]
    with ThreadPoolExecutor(1 + MOST_LOOKED_AT + len(serving)) as pool:
        vllm = pool.submit(_serving, cluster, store, config, pods) if config.has_managed_serving else None
        progress = dict(zip(running, pool.map(lambda name: _progress_of(cluster, name), running[:MOST_LOOKED_AT]), strict=False))
        proofs = dict(zip(serving, pool.map(lambda name: _proof(store, config.run, name), serving), strict=True))
    return RunObjects(
        at=time.time(),
        jobs=jobs,
        pods=pods,
        events=_events(cluster, jobs, pods),
        progress={name: found for name, found in progress.items() if found},
        proofs={name: found for name, found in proofs.items() if found},
        serving=vllm.result() if vllm else None,
    )


def _serving(cluster: Cluster, store: Store, config: RunConfig, pods: Sequence[Object]) -> ServingState | None:
    """As the controller sees it; None while the store cannot be asked."""
    try:
        return ServingReader(config, store, cluster, lambda: pods).state()
    except ItoolError:
        return None


def _progress_of(cluster: Cluster, pod: str) -> Progress | None:
    """How far a stage pod says it is; None when it does not say, or its log cannot be read now."""
    try:
        return last_progress(b"".join(cluster.pod_log(pod, STAGE_CONTAINER, tail_lines=TAIL_LINES)))
    except ItoolError:
        return None


def _events(cluster: Cluster, jobs: Sequence[Object], pods: Sequence[Object]) -> list[Object]:
    """Events of what is in trouble: by name while these are few, else the namespace's warnings."""
    names = [pod["metadata"]["name"] for pod in pods if _is_in_trouble(pod)]
    states: dict[str, list[PodState]] = defaultdict(list)
    for pod in pods:
        states[pod["metadata"]["labels"].get(JOB_LABEL, "")].append(pod_state(pod))
    names += [job["metadata"]["name"] for job in jobs if not is_over(job) and lacks_pods(job, states[job["metadata"]["name"]])]
    if len(names) > MOST_LOOKED_AT:
        return cluster.list("events", fields="type=Warning")[0]
    return [event for name in names for event in cluster.list("events", fields=f"involvedObject.name={name}")[0]]


def _is_in_trouble(pod: Object) -> bool:
    state = pod_state(pod)
    return state.phase == "pending" or (state.phase == "running" and not state.ready)


def _proof(store: Store, run: str, pod: str) -> Proof | None:
    try:
        return read_proof(store, run, pod)
    except ItoolError:
        return None
