"""torchrun and `accelerate launch` with the exit codes of errors.py: on their own both end with 1, whatever their workers ended with.

    python -m itool.train.launch torchrun --nproc-per-node 2 -m jobs.dpo --config run.yaml --iteration 1
    python -m itool.train.launch accelerate --num_processes 2 -m jobs.dpo --config run.yaml --iteration 1

What follows the first word are that launcher's own arguments. SIGTERM goes on to the workers, and the launcher waits until they have
saved their checkpoint, however long the update takes; on its own it would kill them after 30 s.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from itool.artifacts.process import STOP_SIGNALS, exit_code_of
from itool.errors import ConfigError, DependencyError, Interrupted

_DAY_SECONDS = 24 * 60 * 60


def launch(argv: list[str]) -> int:
    """Run the workers of this node to their end; returns the exit code that says most about it."""
    start = {"torchrun": _torchrun, "accelerate": _accelerate}.get(argv[0] if argv else "")
    if start is None:
        return exit_code_of(ConfigError(f"no known launcher in {' '.join(argv)!r}", remedy="Begin with torchrun or accelerate"))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_DAY_SECONDS))
    _end_when_stopped_before_workers_run()
    from torch.distributed import DistError  # noqa: PLC0415 - torch takes seconds, in which process 1 of a container is to hear SIGTERM
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.elastic.rendezvous import RendezvousError  # noqa: PLC0415

    try:
        start(argv[1:])
    except ChildFailedError as error:
        return worst_exit_code(error.failures)
    except SignalException as error:
        return exit_code_of(Interrupted(f"the workers were stopped by {error.sigval.name}", remedy="Run the same command again to resume"))
    except (RendezvousError, DistError) as error:
        return exit_code_of(DependencyError(f"the other nodes did not come ({error or 'time-out'})", remedy="Start all of them again"))
    return 0


def _torchrun(arguments: list[str]) -> None:
    import torch.distributed.run as torchrun  # noqa: PLC0415 - as above

    torchrun.run(torchrun.parse_args(arguments))  # type: ignore[no-untyped-call] # torch's launcher ships no types


def _accelerate(arguments: list[str]) -> None:
    from accelerate.commands import launch as accelerate  # noqa: PLC0415 - as above

    accelerate.launch_command(accelerate.launch_command_parser().parse_args(arguments))


def worst_exit_code(failures: Mapping[int, Any]) -> int:
    """The exit code of the worker that failed first; of those that only lost the others (69), or were ended for it, at last.

    `failures` by rank have `exitcode` (negative: the signal) and `timestamp`. A signal n is 128 + n, as in a shell.
    """
    codes: list[int] = [failure.exitcode for failure in sorted(failures.values(), key=lambda failure: failure.timestamp)]
    code = min(codes, key=lambda code: (code == -signal.SIGTERM, code == DependencyError.exit_code))
    return code if code > 0 else 128 - code


def _end_when_stopped_before_workers_run() -> None:
    """Until workers run, and torch handles signals, a thread does: the main one may wait for the other nodes, deaf for 15 minutes."""
    for number in STOP_SIGNALS:
        signal.signal(number, _awaited)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    threading.Thread(target=_end_on_signal, args=(ours, theirs), daemon=True).start()


def _end_on_signal(signals: socket.socket, _open: socket.socket) -> None:
    while number := signals.recv(1):
        if signal.getsignal(number[0]) is _awaited:
            os._exit(exit_code_of(Interrupted("stopped before the workers ran", remedy="Run the same command again")))


def _awaited(number: int, frame: FrameType | None) -> None:
    """Does nothing: the thread has been told already."""


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
