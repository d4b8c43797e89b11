"""Stops a run, wherever its controller is: the controller first, so that it starts nothing again, then what it has started."""

from __future__ import annotations

import time
from functools import partial

from itool.artifacts.store import Store
from itool.cluster.client import Cluster
from itool.cluster.job_facts import is_over
from itool.cluster.kubernetes_runner import open_runner
from itool.cluster.leases import FolderLease, Lease, StoreLease
from itool.cluster.objects import COMPONENT_LABEL, RUN_LABEL
from itool.cluster.serving import stop_vllm
from itool.cluster.session import keep, open_lease
from itool.config import RunConfig
from itool.errors import DependencyError

LEASE_SECONDS = 90.0
"""A holder looks at its lease every 20 s; one that died holds it for 60 s."""


def cancel_here(config: RunConfig, store: Store) -> bool:
    """Stop the controller, whose stages stop with it. False when nothing works on the run."""
    lease = open_lease(store, config.run)
    asked = lease.request_stop()
    if asked:
        _wait_until_free(lease, config.run)
    return asked


def cancel_in_cluster(config: RunConfig, store: Store, cluster: Cluster) -> bool:
    """Stop the controller, the run's Jobs (their pods save a checkpoint) and vLLM. False when nothing works on the run."""
    controllers = _suspend_controllers(config, cluster)
    lease = open_lease(store, config.run)
    asked = lease.request_stop()
    if asked or controllers:
        _wait_until_free(lease, config.run)
    lease.acquire()  # nobody starts the run again while its Jobs are being stopped
    try:
        stopped = _stop_jobs(config, cluster, store, lease)
    finally:
        lease.release()
    served = stop_vllm(cluster, config.run)
    return bool(asked or controllers or stopped or served)


def _suspend_controllers(config: RunConfig, cluster: Cluster) -> list[str]:
    """A chart's controller is a Job, which would start its pod again: a suspended one does not."""
    jobs, _ = cluster.list("jobs", f"{RUN_LABEL}={config.run},{COMPONENT_LABEL}=controller")
    names = [str(job["metadata"]["name"]) for job in jobs if not is_over(job) and not job["spec"].get("suspend")]
    for name in names:
        cluster.patch("jobs", name, {"spec": {"suspend": True}})
    return names


def _stop_jobs(config: RunConfig, cluster: Cluster, store: Store, lease: Lease) -> int:
    runner = open_runner(config, cluster, store)
    runner.while_stopping = partial(keep, lease)
    try:
        open_jobs = sum(not attempt.over for attempts in runner.state().values() for attempt in attempts)
        runner.cancel(config.kubernetes.grace_seconds + 30.0)
        left = [task.label for task, attempts in runner.state().items() if not attempts[-1].over]
    finally:
        runner.close()
    if left:
        raise DependencyError(f"{', '.join(left)} still run after their grace period", remedy="See `itoolctl status`; cancel again")
    return open_jobs


def _wait_until_free(lease: FolderLease | StoreLease, run: str) -> None:
    deadline = time.monotonic() + LEASE_SECONDS
    while lease.holder() is not None:
        if time.monotonic() > deadline:
            raise DependencyError(f"run {run} was asked to stop but its controller still runs", remedy="Wait, and see `itoolctl status`")
        time.sleep(0.2)
