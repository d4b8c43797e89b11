"""What a job's process needs around a stage: its command line, stop signals, start-up clock, and errors as exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from itool.artifacts.disk import Use, storage_error
from itool.errors import ConfigError, Interrupted, ItoolError
from itool.visible import visible

_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FORCE_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class JobArguments:
    """The command line of every job."""

    config: Path | None
    iteration: int
    shard: int
    shards: int
    overrides: list[str]
    key: str | None
    """Of the artifact to make, where a controller has worked it out; without it the stage reads what its run has written so far."""
    rank: int
    """Which of the processes that do this stage together. All run the body; 0 alone logs and commits."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}", remedy=f"See {self.prog} --help")


def parse_arguments(name: str, argv: list[str] | None) -> JobArguments:
    """Read a job's command line (None: sys.argv). Raises ConfigError."""
    parser = _Parser(prog=f"python -m jobs.{name}", description=f"Stage {name}: reads and writes artifacts under the configuration's root.")
    parser.add_argument("--config", type=Path, help="the run's configuration file (default: all defaults)")
    parser.add_argument("--iteration", type=int, default=0, help="iteration of the loop; 0 is everything before it")
    parser.add_argument("--shard", type=int, help="which shard this process does (default: JOB_COMPLETION_INDEX, else 0)")
    parser.add_argument("--shards", type=int, default=1, help="how many shards there are")
    parser.add_argument("--key", help="key of the artifact to make, if it is known: spares reading every manifest of the run")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parsed = parser.parse_args(argv)
    shard = _pod_index() if parsed.shard is None and parsed.shards > 1 else parsed.shard or 0
    if not 0 <= shard < parsed.shards:
        raise ConfigError(f"--shard {shard} is not one of {parsed.shards} shards: use 0 to {parsed.shards - 1}")
    return JobArguments(parsed.config, parsed.iteration, shard, parsed.shards, parsed.overrides, parsed.key, worker_rank())


def _pod_index() -> int:
    """Which pod of an Indexed Job this is; 0 outside of one."""
    given = os.environ.get("JOB_COMPLETION_INDEX", "0")
    if not given.isdigit():
        raise ConfigError(f"JOB_COMPLETION_INDEX = {given!r} is not a number", remedy="Give --shard")
    return int(given)


def worker_count() -> int:
    """How many processes do this stage together: torchrun's WORLD_SIZE, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def worker_rank() -> int:
    """Which of them this one is: torchrun's RANK, 0 for a process alone."""
    return int(os.environ.get("RANK", "0")) if worker_count() > 1 else 0


class StopFlag:
    """Set by the first SIGTERM or SIGINT. A later Ctrl-C stops at once; SIGTERM never does, as a controller sends it after a Ctrl-C."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __bool__(self) -> bool:
        return self._since is not None

    def handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif number == signal.SIGINT and now - self._since > _FORCE_AFTER_SECONDS:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have stop signals handled, as far as this thread may (only the main one can), and restore the former handlers afterwards."""
    former = {}
    with contextlib.suppress(ValueError):
        for number in STOP_SIGNALS:
            former[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_on_sigterm_as_process_1() -> None:
    """In a container, end with 75 when asked to, until somebody handles SIGTERM: the kernel drops it where process 1 has no handler."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, end_at_once)


def end_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """End a process that holds nothing yet, from wherever it is, threads that wait for a store included."""
    with contextlib.suppress(OSError):
        os.write(2, f"interrupted: stopped by {signal.Signals(number).name}. Run the same command again\n".encode())
    os._exit(Interrupted.exit_code)


def seconds_since_process_start() -> float:
    """Age of this process, imports included; a fork starts anew. 0 where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def peak_memory_bytes() -> int | None:
    """Most resident memory that this process ever had; None where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
    return None


def gpus_in_use() -> int:
    """How many GPUs the stage computes on: each worker on one, however many it sees. Asks torch only if the stage has imported it."""
    torch = sys.modules.get("torch")
    return worker_count() if torch is not None and torch.cuda.is_initialized() else 0


def exit_code_of(error: BaseException) -> int:
    """Say what went wrong in one line on stderr (with ITOOL_DEBUG=1 also the traceback) and return the process's exit code.

    A log that takes no more bytes does not change the code: what waits for it is let go, or its flush at the end would fail.
    """
    known = as_itool_error(error)
    try:
        if os.environ.get("ITOOL_DEBUG") == "1":
            traceback.print_exception(error)
        sys.stderr.write(visible(f"{'interrupted' if isinstance(known, Interrupted) else 'error'}: {known}\n"))
        sys.stderr.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return known.exit_code


def as_itool_error(error: BaseException, place: str = "the staging folder", use: Use = "root") -> ItoolError:
    """Any error as one of ours: a full disk or a read-only folder is a StorageError, what nobody foresaw an ItoolError with its type.

    `place` is named where the error itself names no file; `use` is what the file was used for.
    """
    if isinstance(error, ItoolError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped at once, without a checkpoint", remedy="Run the same command again to resume")
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return storage_error(error, Path(place), use)
    if (number := _wrapped_errno(str(error))) is not None:
        return storage_error(OSError(number, os.strerror(number)), Path(place), use)
    return ItoolError(f"{type(error).__name__}: {error}", remedy="Set ITOOL_DEBUG=1 for the traceback")


def _wrapped_errno(message: str) -> int | None:
    """The storage error that a library has wrapped into text: safetensors "(os error 28)", copytree "[Errno 28]"; torch names none."""
    if "PytorchStreamWriter failed" in message or ("inline_container" in message and "unexpected pos" in message):
        return errno.ENOSPC
    found = re.search(r"(?:\(os error |\[Errno )(\d+)[])]", message)
    return int(found[1]) if found and int(found[1]) in _STORAGE_ERRNOS else None
