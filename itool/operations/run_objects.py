"""Reads what Kubernetes knows of a run: Jobs and pods by their labels, events of what is in trouble, progress from the logs. Never writes.

Works from a laptop or in a pod, with or without a living controller; three lists and a handful of log tails, however large the run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from itool.artifacts.store import Store
from itool.cluster.job_facts import is_over
from itool.cluster.manifests import STAGE_CONTAINER
from itool.cluster.objects import JOB_LABEL, RUN_LABEL, Object
from itool.cluster.pod_states import PodState, lacks_pods, pod_state
from itool.cluster.progress import Progress, last_progress
from itool.cluster.serving_reader import ServingReader
from itool.cluster.wish import read_proof
from itool.config import RunConfig
from itool.errors import ItoolError
from itool.operations.overview import RunObjects, of_component

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

T = TypeVar("T")
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
        reader = ServingReader(config, store, cluster, lambda: pods)  # sees it as the controller does
        vllm = pool.submit(_said, reader.state) if config.has_managed_serving else None
        told = pool.map(lambda name: _said(partial(_progress_of, cluster, name)), running[:MOST_LOOKED_AT])
        proved = pool.map(lambda name: _said(partial(read_proof, store, config.run, name)), serving)
        progress, proofs = zip(running, told, strict=False), zip(serving, proved, strict=True)
    return RunObjects(
        at=time.time(),
        jobs=jobs,
        pods=pods,
        events=_events(cluster, jobs, pods),
        progress={name: found for name, found in progress if found},
        proofs={name: found for name, found in proofs if found},
        serving=vllm.result() if vllm else None,
    )


def _said(ask: Callable[[], T]) -> T | None:
    """What is answered; None while cluster or store cannot be asked."""
    try:
        return ask()
    except ItoolError:
        return None


def _progress_of(cluster: Cluster, pod: str) -> Progress | None:
    """How far a stage pod says it is; None when it does not say."""
    return last_progress(b"".join(cluster.pod_log(pod, STAGE_CONTAINER, tail_lines=TAIL_LINES)))


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
