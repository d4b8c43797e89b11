"""One controller per run at a time.

In a folder the lease is a lock that the kernel holds (`flock`): it ends with the process and with the stages that inherited it, however
they die. In an object store it is a row of objects, `<run>/lease/<generation>.json`, each created once (conditional write): the highest
generation holds the run, renews its expiry, and is replaced when that has passed. Both say who holds the run and can be asked to stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from itool.artifacts.disk import storage_error
from itool.artifacts.store import Store
from itool.commands import itoolctl
from itool.errors import ArtifactError, ConfigError, DependencyError, StorageError
from itool.logs import get_logger

log = get_logger(__name__)

TTL_SECONDS = 60.0
ORPHAN_WAIT_SECONDS = 45.0
LOOK_AGAIN_SECONDS = 2.0


class LeaseHeld(DependencyError):  # noqa: N818 - says what is the case, like the errors around it
    """Another controller acts on the run."""


class LeaseLost(DependencyError):  # noqa: N818
    """Another controller has taken the run over: this one must not act any more."""


class Lease(Protocol):
    """The right to act on a run."""

    def acquire(self) -> None:
        """Take it. Raises LeaseHeld (69), which names the holder, when another controller acts on the run."""

    def renew(self) -> bool:
        """Keep it; True when somebody asked this controller to stop. Raises LeaseLost, or DependencyError while nobody can say.

        While the store is down nobody else can take the run either; after that it is still ours unless somebody was quicker.
        """

    def release(self) -> None:
        """Give it back."""

    @property
    def inherited(self) -> tuple[int, ...]:
        """File descriptors that stages must inherit to keep the lease alive."""


def acquire_within(
    lease: Lease, seconds: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Take a lease, waiting for its holder to give it up or to be missed. Raises LeaseHeld when that takes longer.

    A wait that outlasts a dead holder's lease is told once: nothing else says what a controller that starts nothing is doing.
    """
    began, told = clock(), False
    deadline = began + seconds
    while True:
        try:
            return lease.acquire()
        except LeaseHeld as held:
            if clock() >= deadline:
                raise
            if not told and clock() - began > TTL_SECONDS:
                told = True
                log.info("waiting for another controller", reason=str(held))
        sleep(min(LOOK_AGAIN_SECONDS, max(deadline - clock(), 0.0)))


def holder_document() -> dict[str, Any]:
    """Who we are, for the messages of others."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started_at": time.time()}


@dataclass
class FolderLease:
    """`<root>/<run>/controller.lock`. What `sleep` raises ends the wait for a dead holder's stages."""

    path: Path
    sleep: Callable[[float], None] = time.sleep
    _descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the file; when its holder is dead, wait for the stages that it left behind to stop."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(error, self.path) from None
        with contextlib.ExitStack() as unless_held:
            unless_held.callback(os.close, descriptor)
            self._wait_for_lock(descriptor)
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder_document()).encode(), 0)
            except OSError as error:
                raise storage_error(error, self.path) from None
            unless_held.pop_all()
            self._descriptor = descriptor

    def _wait_for_lock(self, descriptor: int) -> None:
        """Whoever looks has the lock too, for a moment and shared: then the file names the last holder, and nobody holds the run."""
        deadline = time.monotonic() + ORPHAN_WAIT_SECONDS
        while not _try_lock(descriptor, self.path):
            only_looked_at = _try_lock(descriptor, self.path, shared=True)
            if only_looked_at:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            holder = _parse(os.pread(descriptor, 4096, 0))
            if (not only_looked_at and _lives(holder)) or time.monotonic() > deadline:
                raise _held(self.path.parent.name, str(self.path.parent.parent), holder)
            self.sleep(0.1)

    def renew(self) -> bool:
        """A kernel lock needs no renewal, and `cancel` sends a signal."""
        return False

    def release(self) -> None:
        """Unlock; stages that still run keep their own hold until they end."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def inherited(self) -> tuple[int, ...]:
        """The lock's descriptor."""
        return (self._descriptor,) if self._descriptor is not None else ()

    def holder(self) -> dict[str, Any] | None:
        """Who holds the run now; None when nobody does. Raises StorageError when the lock cannot be read."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, self.path, "reading") from None
        try:
            return None if _try_lock(descriptor, self.path, shared=True) else _parse(os.pread(descriptor, 4096, 0))
        finally:
            os.close(descriptor)

    def request_stop(self) -> bool:
        """Ask the holder to stop; False when nobody holds the run."""
        holder = self.holder()
        if holder is None:
            return False
        run = self.path.parent.name
        if holder.get("host") != socket.gethostname():
            raise DependencyError(f"run {run} is held on {holder.get('host')}", remedy=f"Run `itoolctl cancel {run}` there")
        process = _process(holder)
        if process is None:
            raise DependencyError(f"{self.path} names no process that holds run {run}", remedy="Stop it where it was started")
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            pass  # its stages are about to stop
        except PermissionError:
            raise DependencyError(f"run {run} is held by another user's process {process}", remedy="Ask that user to stop it") from None
        return True


@dataclass
class StoreLease:
    """`<run>/lease/<generation>.json` in a store with conditional writes."""

    store: Store
    run: str
    ttl_seconds: float = TTL_SECONDS
    clock: Callable[[], float] = time.time
    identity: dict[str, Any] = field(default_factory=holder_document)
    _generation: int | None = None
    _renewed_at: float = 0.0

    def acquire(self) -> None:
        """Create the next generation, if the newest has been released or has expired. Raises ConfigError where that excludes nobody."""
        newest, holder = self._newest()
        if holder is not None and self._is_held(holder):
            raise _held(self.run, self.store.root, holder)
        document = self._document()
        if not self.store.create(self._key(newest + 1), document):
            _, holder = self._newest()
            if holder != _parse(document):  # else an answer was lost, and what was asked again found our own object
                raise _held(self.run, self.store.root, holder or {})
        self._generation, self._renewed_at = newest + 1, self.clock()
        with contextlib.suppress(DependencyError):  # the next controller does what this one could not
            self._require_conditional_writes()
            for generation in range(newest, max(newest - 3, -1), -1):
                self.store.delete(self._key(generation))

    def _require_conditional_writes(self) -> None:
        """Some S3-compatible stores ignore the condition: two controllers would hold the run, and two attempts write one manifest."""
        if self._generation is not None and self.store.create(self._key(self._generation), self._document()):
            self.release()
            problem = f"root = {self.store.root} replaces an object that must only be created"
            raise ConfigError(problem, remedy="Use a store with conditional writes (If-None-Match)")

    def renew(self) -> bool:
        """Every third of the lifetime, or when the clock was set back: push the expiry, see whether someone took over or asked to stop."""
        if self._generation is None or 0 <= self.clock() - self._renewed_at < self.ttl_seconds / 3:
            return False
        newest, _ = self._newest()
        if newest > self._generation:
            self._generation = None
            remedy = f"Follow it with {itoolctl(f'status {self.run}', self.store.root)}"
            raise LeaseLost(f"another controller has taken over run {self.run}", remedy=remedy)
        self.store.write(self._key(self._generation), self._document())
        self._renewed_at = self.clock()
        return self.store.size(self._stop_key(self._generation)) is not None

    def release(self) -> None:
        """Mark it free, by no expiry. The object stays, so that generations only grow. While the store is down the lease just expires."""
        if self._generation is not None:
            with contextlib.suppress(DependencyError):
                self.store.write(self._key(self._generation), json.dumps(self.identity).encode())
                self.store.delete(self._stop_key(self._generation))
            self._generation = None

    @property
    def inherited(self) -> tuple[int, ...]:
        """None: the expiry covers stages that are left behind."""
        return ()

    def holder(self) -> dict[str, Any] | None:
        """Who holds the run now; None when nobody does."""
        _, holder = self._newest()
        return holder if holder is not None and self._is_held(holder) else None

    def request_stop(self) -> bool:
        """Leave a note that the holder finds when it renews; False when nobody holds the run."""
        newest, holder = self._newest()
        if holder is None or not self._is_held(holder):
            return False
        self.store.write(self._stop_key(newest), b"{}")
        return True

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """The highest generation and what it says. One that is gone when it is read was replaced since it was listed: list again."""
        try:
            return self._list_and_read()
        except ArtifactError:
            return self._list_and_read()

    def _list_and_read(self) -> tuple[int, dict[str, Any] | None]:
        generations = [int(Path(key).stem) for key in self.store.list(f"{self.run}/lease") if key.endswith(".json")]
        if not generations:
            return 0, None
        newest = max(generations)
        return newest, _parse(self.store.read(self._key(newest)))

    def _is_held(self, holder: dict[str, Any]) -> bool:
        return float(holder.get("expires_at", 0.0)) > self.clock()

    def _document(self) -> bytes:
        return json.dumps({**self.identity, "expires_at": self.clock() + self.ttl_seconds}).encode()

    def _key(self, generation: int) -> str:
        return f"{self.run}/lease/{generation}.json"

    def _stop_key(self, generation: int) -> str:
        return f"{self.run}/lease/{generation}.stop"


def _try_lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # NFS without its lock service, Lustre without its option
        remedy = "Set root to a folder on a file system with locks (flock), or to s3://bucket/prefix"
        raise StorageError(f"cannot lock {path}: {error.strerror}", remedy=remedy) from None
    return True


def _parse(document: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(document)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder's process exists; one on another machine is taken to live."""
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    process = _process(holder)
    if process is None:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _process(holder: dict[str, Any]) -> int | None:
    """The holder's process; None where the file names none. To `kill`, 0 and less are groups, and -1 is every process of this user."""
    process = holder.get("pid")
    return process if type(process) is int and 0 < process < 1 << 31 else None  # as a bool, `true` would be process 1


def _held(run: str, root: str, holder: dict[str, Any]) -> LeaseHeld:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    remedy = f"Wait for it, or stop it with {itoolctl(f'cancel {run}', root)}"
    return LeaseHeld(f"run {run} is held by another controller ({who})", remedy=remedy)
