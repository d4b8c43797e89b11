"""Runs stages as processes on this machine, with the same entry points as the containers: `python -m jobs.<stage> ...`.

With `warm_start` the stages that need torch are forked from one process that has imported it, which happens while `prepare` runs; the
controller itself never imports torch. Every attempt writes a log file, and all of them stop when the controller goes away.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from itool.artifacts.disk import storage_error, storage_remedy
from itool.cluster.last_words import last_words
from itool.cluster.log_names import LogName
from itool.cluster.runner import NOT_BEGUN, Attempt, Attempts, Task
from itool.config import RunConfig
from itool.errors import Interrupted, ItoolError, StorageError
from itool.logs import get_logger
from itool.stages import STAGES, may_overlap, starts_own_vllm

log = get_logger(__name__)

LAUNCHER_LOG = "launcher.log"

WARM_MODULES = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "peft",
    "datasets",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "itool.artifacts.stage",
    "itool.policy.embedded",
)

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc keeps freed tensors instead of giving every one back to the kernel; read once, when a process starts."""


@dataclass
class LocalRunner:
    """One run's processes. `config_path` is the file that every job reads, `logs_path` the folder of the log files.

    `keep_open` are file descriptors that every stage inherits: the run's lock stays held until the last of them has ended.
    `on_ended` is told of every ended attempt's log file (a store that is no folder gets a copy). `while_stopping` is called again and
    again until what `cancel` stops has ended.
    """

    config: RunConfig
    config_path: Path
    logs_path: Path
    keep_open: Sequence[int] = ()
    warm_modules: Sequence[str] = WARM_MODULES
    on_ended: Callable[[Task, int, Path], None] | None = None
    while_stopping: Callable[[], None] = lambda: None
    _attempts: dict[Task, list[Attempt]] = field(default_factory=dict)
    _launchers: dict[bool, LauncherProcess] = field(default_factory=dict)
    _started_by: dict[str, tuple[Task, int, bool]] = field(default_factory=dict)
    _log_starts: dict[tuple[Task, int], int] = field(default_factory=dict)

    def start(self, task: Task, attempt: int) -> None:
        """Have the launcher fork the attempt; without `warm_start`, or before the warm one is ready, from a bare interpreter."""
        identity, log_path = f"{task.label}-{attempt}", self.log_path(task, attempt)
        self._forget_before(task.stage.iteration - 1)
        self._log_starts[task, attempt] = log_path.stat().st_size if log_path.exists() else 0
        warm = self._choose_launcher(task)
        launcher = self._launcher(warm)
        try:
            log_path.touch()  # by which `status` knows that the attempt began, however long the launcher still imports
        except OSError as error:
            raise storage_error(error, log_path) from None
        launcher.request(
            {
                "op": "start",
                "id": identity,
                "module": f"jobs.{task.stage.name}",
                "arguments": self._arguments(task),
                "log": str(log_path),
                "environment": {"OMP_NUM_THREADS": str(self._threads(task))},
                "threads": self._threads(task),
            }
        )
        self._started_by[identity] = (task, attempt, warm)
        self._attempts.setdefault(task, []).append(Attempt(attempt, "running", started_at=time.time()))

    def state(self) -> Attempts:
        """Take in what the launchers have reported, and return every attempt of this iteration and the one before."""
        for warm, launcher in list(self._launchers.items()):
            for event in launcher.events():
                if event["event"] == "ended":
                    self._end(event["id"], event["status"], event["peak_memory_bytes"])
            if launcher.gone:
                self._launchers.pop(warm).close()
                said = explain_end(1, (self.logs_path / LAUNCHER_LOG).read_bytes())
                self._end_all_of(warm, f"the process that starts stages has died: {said or 'killed'}")
        return {task: tuple(attempts) for task, attempts in self._attempts.items()}

    def logs(self, task: Task, attempt: int, offset: int = 0) -> bytes:
        """Bytes of the attempt's log file, without those of an earlier controller's attempt of the same number."""
        try:
            with self.log_path(task, attempt).open("rb") as file:
                file.seek(self._log_starts.get((task, attempt), 0) + offset)
                return file.read()
        except FileNotFoundError:
            return b""

    def log_path(self, task: Task, attempt: int) -> Path:
        """Where an attempt's output goes."""
        shard = task.shard if task.shards > 1 else None
        return self.logs_path / str(LogName(task.stage.iteration, task.stage.name, shard, attempt))

    def stop(self, task: Task, attempt: int, reason: str) -> None:
        """Nothing that an earlier controller has left still runs here."""

    def cancel(self, grace_seconds: float) -> None:
        """SIGTERM, wait, SIGKILL. What waits for a launcher that still imports has not begun, and ends as interrupted without a signal."""
        self.state()
        for warm in [warm for warm, launcher in self._launchers.items() if not launcher.ready]:
            self._launchers.pop(warm).close()
            self._end_all_of(warm, NOT_BEGUN, status=Interrupted.exit_code)
        self._signal_all(signal.SIGTERM)
        if not self._wait_for_all(grace_seconds):
            self._signal_all(signal.SIGKILL)
            self._wait_for_all(10.0)

    def detach(self, grace_seconds: float) -> None:
        """Stages here cannot outlive their controller."""
        self.cancel(grace_seconds)

    def settle(self, seconds: float) -> None:
        """A stage here is done when its process has ended."""

    def kill(self) -> None:
        """Stop everything now, without a checkpoint."""
        self._signal_all(signal.SIGKILL)

    def close(self) -> None:
        """Let the launchers go; they stop what still runs."""
        for launcher in self._launchers.values():
            launcher.close()
        self._launchers.clear()

    def warm_up(self) -> None:
        """Begin to import torch in the background."""
        if self.config.runtime.warm_start:
            self._launcher(True)

    def _forget_before(self, iteration: int) -> None:
        """Drop attempts that nobody asks about: when an iteration begins, every artifact of those before the last one is there."""
        for task in [task for task, tries in self._attempts.items() if task.stage.iteration < iteration and tries[-1].over]:
            for attempt in self._attempts.pop(task):
                self._log_starts.pop((task, attempt.number), None)

    def _choose_launcher(self, task: Task) -> bool:
        if task.stage.name != "report":
            self.warm_up()
        warm = self._launchers.get(True)
        return warm is not None and (warm.ready or STAGES[task.stage.name].gpu)

    def _launcher(self, warm: bool) -> LauncherProcess:
        if warm not in self._launchers:
            try:
                self.logs_path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(error, self.logs_path) from None
            self._launchers[warm] = LauncherProcess.open(
                self._modules() if warm else (), self.logs_path / LAUNCHER_LOG, self.keep_open, environment=self._environment()
            )
        return self._launchers[warm]

    def _modules(self) -> list[str]:
        return [*self.warm_modules, *(f"jobs.{name}" for name in STAGES)]

    def _environment(self) -> dict[str, str]:
        """What must be set before a process starts. A user's own malloc settings win."""
        fixed = {"OMP_NUM_THREADS": str(self._all_threads()), "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
        return {**ALLOCATOR, **os.environ, **fixed}

    def _all_threads(self) -> int:
        """The setting, else the user's OMP_NUM_THREADS, else every core that this process may use."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return self.config.runtime.threads or (int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0)))

    def _threads(self, task: Task) -> int:
        """The cores by as many processes as may run side by side, whether they do or not: no result shall depend on when a stage ran."""
        shards = 1 if starts_own_vllm(self.config) else task.shards
        return max(1, self._all_threads() // max(shards, 2 if may_overlap(self.config, task.stage) else 1))

    def _arguments(self, task: Task) -> list[str]:
        arguments = ["--config", str(self.config_path), "--iteration", str(task.stage.iteration), "--key", task.key]
        return [*arguments, "--shard", str(task.shard), "--shards", str(task.shards)] if task.shards > 1 else arguments

    def _end(self, identity: str, status: int, peak_memory_bytes: int, reason: str = "") -> None:
        task, number, _ = self._started_by.pop(identity)
        attempt = self._attempts[task][-1]
        assert attempt.number == number
        code = status if status >= 0 else 128 - status
        self._attempts[task][-1] = replace(
            attempt,
            phase="succeeded" if code == 0 else "failed",
            exit_code=code,
            reason="" if code == 0 else reason or explain_end(status, self.logs(task, number)),
            ended_at=time.time(),
            peak_memory_bytes=peak_memory_bytes,
        )
        self._hand_over_log(task, number)

    def _hand_over_log(self, task: Task, number: int) -> None:
        """A store that is away loses nobody's end: the log then stays on this machine, where `logs` finds it too."""
        if self.on_ended is None:
            return
        path = self.log_path(task, number)
        try:
            self.on_ended(task, number, path)
        except ItoolError as error:
            log.warning("log stays on this machine", path=str(path), error=str(error))

    def _end_all_of(self, warm: bool, reason: str, *, status: int = -signal.SIGKILL) -> None:
        """Note the end of every attempt of a launcher that is no more."""
        for identity in [name for name, (_, _, by) in self._started_by.items() if by == warm]:
            self._end(identity, status, 0, reason)

    def _signal_all(self, number: int) -> None:
        for identity, (_, _, warm) in self._started_by.items():
            if warm in self._launchers:
                self._launchers[warm].request({"op": "signal", "id": identity, "signal": int(number)})

    def _wait_for_all(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._started_by and time.monotonic() < deadline:
            self.while_stopping()
            time.sleep(0.02)
            self.state()
        return not self._started_by


@dataclass
class LauncherProcess:
    """The controller's end of a launcher: requests go in, events come out, both without blocking."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    ready: bool = False
    gone: bool = False
    _received: bytes = b""

    @classmethod
    def open(cls, modules: Sequence[str], log_path: Path, keep_open: Sequence[int], environment: dict[str, str]) -> LauncherProcess:
        """Start a launcher in its own session, so that Ctrl-C reaches the controller alone."""
        ours, theirs = socket.socketpair()
        try:
            with log_path.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "itool.cluster.launcher", str(theirs.fileno()), *modules],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=(theirs.fileno(), *keep_open),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            message = f"stages cannot be started with their logs in {log_path.parent}: {error}"
            raise StorageError(message, remedy=storage_remedy(error)) from None
        finally:
            theirs.close()
        return cls(process, ours)

    def request(self, message: dict[str, Any]) -> None:
        """Send a request; a launcher that is gone is noticed by `events`."""
        try:
            self.control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.gone = True

    def events(self) -> list[dict[str, Any]]:
        """Everything that has been reported since the last call."""
        while select.select([self.control], [], [], 0)[0]:
            try:
                chunk = self.control.recv(65536)
            except ConnectionError:
                chunk = b""
            if not chunk:
                self.gone = True
                break
            self._received += chunk
        *lines, self._received = self._received.split(b"\n")
        events = [json.loads(line) for line in lines]
        self.ready = self.ready or any(event["event"] == "ready" for event in events)
        return events

    def close(self) -> None:
        """Hang up and wait until the launcher has gone. One that still imports has forked nothing, and would only listen afterwards."""
        self.events()
        if not self.ready:
            self.process.terminate()
        self.control.close()
        try:
            self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def explain_end(status: int, output: bytes) -> str:
    """Why an attempt failed, in one line: the signal that ended it, or the last line that its log has to say about it."""
    if status == -signal.SIGKILL:
        return "killed by signal 9 (out of memory, or by hand)"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if status == StorageError.exit_code and b"\nerror: " not in b"\n" + output:
        return "the disk is full or a folder cannot be written; its log took no more either. Free some space and run again"
    return last_words(output)
