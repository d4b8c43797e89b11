"""A run, put together: store, lease, runner, controller, signals. Stages run here as processes, or in a cluster as Jobs."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from itool.artifacts.disk import storage_error
from itool.artifacts.process import stop_signals
from itool.artifacts.resolve import Resolution, resolve
from itool.artifacts.store import FolderStore, Store, open_store
from itool.cluster.controller import Controller, config_key, require_reused_run, rules_of, store_config
from itool.cluster.leases import FolderLease, Lease, StoreLease, acquire_within
from itool.cluster.local import LocalRunner
from itool.cluster.log_names import LOGS_FOLDER, log_key, logs_prefix
from itool.cluster.progress import NoWatcher, Watcher
from itool.cluster.runner import Task
from itool.cluster.wish import has_wish
from itool.config import RunConfig
from itool.errors import ConfigError, DependencyError, Interrupted, ItoolError
from itool.logs import get_logger
from itool.stages import StageId

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

log = get_logger(__name__)

CLUSTER_POLL_SECONDS = 1.0
"""The longest pause between two looks at a cluster; a change ends it at once."""

RIGHTS_SECONDS = 60.0
"""So long a pod waits for its rights; a person is told at once."""


class NotStarted(Interrupted):
    """Stopped before it held the run. `waiting` says for what, in a message's words."""

    def __init__(self, waiting: str, *, remedy: str) -> None:
        super().__init__(f"stopped while waiting for {waiting}; nothing was started", remedy=remedy)


def iterate(config: RunConfig, watcher: Watcher | None = None, *, wait_lease_seconds: float = 0.0) -> dict[StageId, Resolution]:
    """Make every artifact of the run that is missing. A finished run costs one look at the store, and where it has had a vLLM of its own
    one at the cluster: a controller that died may have left it running.

    Raises StageFailed, Interrupted (75) after Ctrl-C or SIGTERM (NotStarted before it holds the run), DependencyError when another
    controller holds the run.
    """
    store = open_store(config.root, config.store)
    resolutions = resolve(store, config)
    if all(resolution.done for resolution in resolutions.values()) and not _may_have_left_vllm(config, store):
        return resolutions
    require_reused_run(store, config)
    with controller_signals() as stop:
        cluster = checked_cluster(config, stop) if config.runtime.backend == "kubernetes" else None
        if cluster is not None:  # named, so that whoever looks at the run from elsewhere finds it
            named = config.kubernetes.model_copy(update={"namespace": cluster.namespace})
            config = config.model_copy(update={"kubernetes": named})
        lease = open_lease(store, config.run, sleep=stop.sleep)
        acquire_within(lease, wait_lease_seconds, sleep=stop.sleep)
        try:
            store_config(store, config)
            if cluster is not None:
                return _iterate_in_cluster(config, store, lease, watcher or NoWatcher(), stop=stop, cluster=cluster)
            return _iterate_here(config, store, lease, watcher or NoWatcher(), stop=stop)
        finally:
            lease.release()


def _may_have_left_vllm(config: RunConfig, store: Store) -> bool:
    """Whether a vLLM may still run for a run that is finished.

    A cluster that cannot be asked is a warning to a person, who may have taken it down; a pod goes on to the checks, which wait or say why.
    """
    if config.runtime.backend != "kubernetes" or not has_wish(store, config.run):
        return False
    from itool.cluster.client import in_cluster, open_cluster  # noqa: PLC0415 - half a second, and only this backend needs it
    from itool.cluster.serving import has_vllm  # noqa: PLC0415

    try:
        return has_vllm(open_cluster(config.kubernetes.namespace, hurried=True), config.run)
    except (ConfigError, DependencyError) as error:
        log.warning("cannot see whether vLLM still runs", error=str(error))
        return in_cluster()


def _iterate_here(config: RunConfig, store: Store, lease: Lease, watcher: Watcher, *, stop: StopRequest) -> dict[StageId, Resolution]:
    runner = local_runner(config, store, lease.inherited)
    runner.while_stopping = partial(keep, lease)
    stop.on_second = runner.kill
    try:
        return Controller(config, store, runner, lease, watcher, stop_requested=stop, rules=rules_of(config)).run()
    finally:
        runner.close()


def keep(lease: Lease) -> None:
    """Stages that save their last checkpoint outlive a lease that is not renewed. Whoever has it now is no reason not to stop them."""
    with suppress(ItoolError):
        lease.renew()


def checked_cluster(config: RunConfig, stop: StopRequest) -> Cluster:
    """The cluster, when everything that the run needs is there. Raises what is missing before anything is created.

    Nothing is held yet, so a stop signal ends this at once, with NotStarted; so does one that came before.
    """
    from itool.cluster.client import in_cluster, open_cluster  # noqa: PLC0415 - half a second, and only this backend needs it
    from itool.cluster.preflight import require  # noqa: PLC0415

    try:
        with stop_signals(signal.default_int_handler):
            if stop():
                raise KeyboardInterrupt
            cluster = open_cluster(config.kubernetes.namespace)
            require(cluster, config, rights_within_seconds=RIGHTS_SECONDS if in_cluster() else 0.0)
    except KeyboardInterrupt:
        raise NotStarted("the cluster's checks", remedy="Start it again when you want it") from None
    return cluster


def _iterate_in_cluster(
    config: RunConfig, store: Store, lease: Lease, watcher: Watcher, *, stop: StopRequest, cluster: Cluster
) -> dict[StageId, Resolution]:
    from itool.cluster.kubernetes_runner import open_runner  # noqa: PLC0415 - as above
    from itool.cluster.run_events import RunEvents  # noqa: PLC0415
    from itool.cluster.serving import KubernetesServing, has_vllm  # noqa: PLC0415

    runner = open_runner(config, cluster, store)
    events = RunEvents(cluster, runner.ensure_owner, watcher)
    controller = Controller(config, store, runner, lease, events, stop_requested=stop, rules=rules_of(config))
    controller.poll_seconds, controller.sleep = CLUSTER_POLL_SECONDS, runner.cache.wait
    try:
        if config.has_managed_serving or has_vllm(cluster, config.run):  # one that earlier settings have left is stopped
            pods = partial(runner.cache.items, "pods")
            owner, keep_service = runner.ensure_owner, runner.keep_service
            controller.serving = KubernetesServing(config, store, cluster, pods, owner=owner, keep_service=keep_service)
        return controller.run()
    finally:
        runner.close()


def open_lease(store: Store, run: str, *, sleep: Callable[[float], None] = time.sleep) -> FolderLease | StoreLease:
    """The lease of a run: the kernel's lock in a folder, an expiring object elsewhere."""
    if isinstance(store, FolderStore):
        return FolderLease(store.path(f"{run}/controller.lock"), sleep=sleep)
    return StoreLease(store, run)


def local_runner(config: RunConfig, store: Store, keep_open: tuple[int, ...]) -> LocalRunner:
    """A runner whose logs and configuration lie in the run's folder; for an object store in a local one, and logs are copied."""
    if isinstance(store, FolderStore):
        return LocalRunner(config, store.path(config_key(config.run)), store.path(logs_prefix(config.run)), keep_open=keep_open)
    folder = local_state(config)
    config_path = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config_path.write_text(config.as_yaml(), encoding="utf-8")
    except OSError as error:
        raise storage_error(error, config_path) from None

    def keep_log(_task: Task, _attempt: int, path: Path) -> None:
        store.upload(path, log_key(config.run, path.name))

    return LocalRunner(config, config_path, folder / LOGS_FOLDER, keep_open=keep_open, on_ended=keep_log)


def local_state(config: RunConfig) -> Path:
    """This machine's folder for a run whose artifacts lie elsewhere."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "itool" / f"{config.run}-{hashlib.sha256(config.root.encode()).hexdigest()[:8]}"


@dataclass
class StopRequest:
    """Whether somebody asked to stop, by Ctrl-C or SIGTERM. `on_second` is called when somebody asks again."""

    signals: int = 0
    on_second: Callable[[], None] = lambda: None

    def __call__(self) -> bool:
        return self.signals > 0

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Count a signal."""
        self.signals += 1
        if self.signals > 1:
            self.on_second()

    def sleep(self, seconds: float) -> None:
        """Sleep while somebody else holds the run, and raise NotStarted when somebody has asked to stop meanwhile."""
        time.sleep(seconds)
        if self():
            raise NotStarted("the run's other controller, which is left alone", remedy="`itoolctl status` says how the run fares")


@contextmanager
def controller_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask to stop; a second one does not wait for checkpoints."""
    stop = StopRequest()
    with stop_signals(stop.handle):
        yield stop
