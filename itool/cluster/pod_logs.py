"""Keeps what stage pods write: followed while a pod runs, stored under `<run>/logs/` when it has ended, however it ended.

A pod's log dies with the pod. So a lone pod is followed from its start (its progress is read from there as well), a shard's from the moment
when it ends or is asked to stop. A pod that comes after a failed one is appended to the same file, each under a line that names it.
"""

from __future__ import annotations

import queue
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from itool.artifacts.store import Store
from itool.cluster.client import Cluster
from itool.cluster.job_facts import trim_pod
from itool.cluster.log_names import LogName, log_key
from itool.cluster.manifests import STAGE_CONTAINER
from itool.cluster.objects import ATTEMPT_LABEL, ITERATION_LABEL, JOB_LABEL, STAGE_LABEL, Object
from itool.cluster.pod_states import SHARD_ANNOTATION, pod_state
from itool.cluster.timed_lines import TimedLines
from itool.errors import DependencyError, ItoolError
from itool.logs import get_logger

log = get_logger(__name__)

LIVE_PODS = 8
READERS = 32
LOCKS = 16
PAUSE_SECONDS = 1.0


@dataclass
class PodLog:
    """What one pod has written so far. `latest` is the pod as last seen, `gone` says that it is not among the unfinished ones any more.

    `complete`: read to its last line. `kept` and `finished` differ when the log could not be kept. `path` is the local copy, open only
    while it is written or read: thousands of pods may have one.
    """

    latest: Object
    key: str
    path: Path
    gone: bool = False
    complete: bool = False
    kept: bool = False
    finished: bool = False
    lines: TimedLines = field(default_factory=TimedLines)
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be written."""
        return self.gone or pod_state(self.latest).phase in ("succeeded", "failed")

    @property
    def heading(self) -> str:
        """The line above the pod's own."""
        state = pod_state(self.latest)
        outcome = state.outcome if state.phase == "failed" else "gone" if self.gone else "ended"
        return f"{heading_start(state.name)} on {state.node}, {outcome}\n"

    def append(self, text: bytes) -> None:
        """Add what was read."""
        with self._lock:
            if text and not self._closed:
                with self.path.open("ab") as file:
                    file.write(text)

    def read(self, offset: int = 0) -> bytes:
        """What is there from `offset` on."""
        with self._lock:
            if not self.path.exists():
                return b""
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read()

    def size(self) -> int:
        """Bytes so far."""
        with self._lock:
            return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Give the local copy back."""
        with self._lock:
            self._closed = True
            self.path.unlink(missing_ok=True)


@dataclass
class JobLogs:
    """One Job's pods by uid: those whose logs are read, and those that were there at the last look. `newest` is by the log's key."""

    live: bool
    logs: dict[str, PodLog] = field(default_factory=dict)
    newest: dict[str, PodLog] = field(default_factory=dict)
    seen: dict[str, Object] = field(default_factory=dict)
    complete: bool = False


Turn = tuple[JobLogs, PodLog, PodLog | None]
"""A log that wants attention, its Job's, and the one that must be stored before it."""


class PodLogs:
    """The logs of a run's stage pods. `look` says what has become of the pods; at most READERS threads read and store, turn by turn."""

    def __init__(self, cluster: Cluster, store: Store, run: str) -> None:
        self._cluster = cluster
        self._store = store
        self._run = run
        self._jobs: dict[str, JobLogs] = {}
        self._turns: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._stopping = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="itool-logs-"))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def look(self, job: Object, pods: Sequence[Object]) -> None:
        """Take in the pods of a Job that are there and have not succeeded."""
        few = int(job["spec"].get("parallelism") or 1) <= LIVE_PODS
        found = self._jobs.setdefault(job["metadata"]["name"], JobLogs(few))
        present = {pod["metadata"]["uid"]: pod for pod in pods}
        for uid, pod in present.items():
            if uid in found.logs:
                found.logs[uid].latest = pod
            elif _has_ended(pod) or (found.live and pod_state(pod).phase == "running"):
                self._follow(found, pod)
        for uid in found.seen.keys() - present.keys() - found.logs.keys():
            self._follow(found, found.seen[uid])
        for uid, reading in found.logs.items():
            reading.gone = uid not in present
        found.seen = present

    def are_kept(self, job: Object) -> bool | None:
        """Whether the logs of all pods of a Job that is over lie in the store; False where one was given up, None while some are read.

        Asks once for the pods that came and went unseen.
        """
        found = self._jobs.setdefault(job["metadata"]["name"], JobLogs(live=False))
        if not found.complete:
            pods, _ = self._cluster.list("pods", f"{JOB_LABEL}={job['metadata']['name']}", trim=trim_pod)
            for pod in pods:
                if pod["metadata"]["uid"] not in found.logs:
                    self._follow(found, pod)
            found.complete = True
        readings = found.logs.values()
        return all(reading.kept for reading in readings) if all(reading.finished for reading in readings) else None

    def text(self, job: str, offset: int = 0) -> bytes:
        """What a Job's pods have written, one after the other, from `offset` on; of Jobs with few pods at a time only.

        Of pods with an index only those of the first: logs that grow side by side have no common offset, and of pods that train together
        the first one says how far they are.
        """
        parts = []
        followed = list(self._jobs[job].logs.values()) if job in self._jobs and self._jobs[job].live else []
        for reading in [reading for reading in followed if pod_state(reading.latest).shard in (None, 0)]:
            size = reading.size()
            if offset < size:
                parts.append(reading.read(offset))
            offset = max(0, offset - size)
        return b"".join(parts)

    def forget(self, job: str) -> None:
        """The Job needs no more attention."""
        for reading in self._jobs.pop(job, JobLogs(live=False)).logs.values():
            reading.close()

    def lose(self, jobs: Set[str]) -> None:
        """Jobs other than these were removed: what their pods have written till now is kept, and then they need no more attention."""
        for job in self._jobs.keys() - jobs:
            readings = self._jobs[job].logs.values()
            for reading in readings:
                reading.gone = True
            if all(reading.finished for reading in readings):
                self.forget(job)

    def close(self, seconds: float) -> None:
        """Wait until the logs of ended pods are stored or given up, but not for ever: what is missing is kept by the next controller."""
        deadline = time.monotonic() + seconds
        readings = [reading for found in self._jobs.values() for reading in found.logs.values()]
        while time.monotonic() < deadline and any(reading.ended and not reading.finished for reading in readings):
            time.sleep(0.05)
        self._stopping.set()
        for _ in self._readers:
            self._turns.put(None)
        for job in list(self._jobs):
            self.forget(job)
        self._remove_folder()

    def _follow(self, found: JobLogs, pod: Object) -> None:
        reading = PodLog(pod, log_key(self._run, log_name(pod)), self._folder / pod["metadata"]["uid"])
        before = found.newest.get(reading.key)
        found.newest[reading.key] = found.logs[pod["metadata"]["uid"]] = reading
        self._turns.put((found, reading, before))
        if len(self._readers) < READERS:
            self._readers.append(threading.Thread(target=self._take_turns, daemon=True))
            self._readers[-1].start()

    def _take_turns(self) -> None:
        """A thread's life. Between two turns it holds none: a turn keeps all logs of its Job in memory, long after the Job is forgotten."""
        while self._take_turn():
            pass

    def _take_turn(self) -> bool:
        """A log that is not kept after its turn goes to the end of the line: a node that is lost holds up no other's. False at the end."""
        if (turn := self._turns.get()) is None or self._stopping.is_set():
            return False
        if not self._keep(*turn) and not self._stopping.wait(PAUSE_SECONDS):
            self._turns.put(turn)
        return True

    def _keep(self, found: JobLogs, reading: PodLog, before: PodLog | None) -> bool:
        """Read a pod to its end, then store behind the pod that was there before. False when another turn is needed."""
        try:
            reading.complete = reading.complete or self._read_to_end(reading)
            if not reading.complete or self._stopping.is_set() or (before is not None and not before.finished):
                return False
            self._store_log(reading)
            reading.kept = True
        except DependencyError:
            return False
        except (ItoolError, OSError) as error:
            log.warning("log cannot be kept", pod=reading.latest["metadata"]["name"], error=str(error))
        reading.finished = True
        if not found.live:
            reading.close()
        return True

    def _read_to_end(self, reading: PodLog) -> bool:
        """Read what is new; True when nothing more can come."""
        ended, name, since = reading.ended, reading.latest["metadata"]["name"], reading.lines.begin()
        for chunk in self._cluster.pod_log(name, STAGE_CONTAINER, follow=True, since=since, timestamps=True):
            reading.append(reading.lines.take(chunk))
            if self._stopping.is_set():
                return False
        if ended and (last := reading.lines.end()):  # else the connection broke, and the line comes again
            reading.append(last + b"\n")
        return ended

    def _store_log(self, reading: PodLog) -> None:
        """Append to what earlier pods of the same attempt have left, unless it is there already."""
        if reading.gone and not reading.size():
            return
        with self._locks[hash(reading.key) % LOCKS]:
            before = b"" if self._store.size(reading.key) is None else self._store.read(reading.key)
            start = heading_start(reading.latest["metadata"]["name"]).encode()
            if not any(line.startswith(start) for line in before.splitlines()):
                self._store.write(reading.key, before + reading.heading.encode() + reading.read())


def log_name(pod: Object) -> LogName:
    """The name of the log that a pod writes to; pods with an index have one each."""
    labels, index = pod["metadata"]["labels"], (pod["metadata"].get("annotations") or {}).get(SHARD_ANNOTATION)
    shard = None if index is None else int(index)
    return LogName(int(labels[ITERATION_LABEL]), labels[STAGE_LABEL], shard, int(labels[ATTEMPT_LABEL]))


HEADING = re.compile(rb"^== pod (?P<pod>[-.a-z0-9]+) on ", re.MULTILINE)
"""How a kept log names the pod whose text follows; `PodLog.heading` writes it."""


def heading_start(pod: str) -> str:
    """How the line above a pod's log begins."""
    return f"== pod {pod}"


def _has_ended(pod: Object) -> bool:
    """Whether a pod has ended or has been asked to."""
    return pod_state(pod).phase in ("succeeded", "failed") or bool(pod["metadata"].get("deletionTimestamp"))
