"""The process that stages are forked from: `python -m itool.cluster.launcher FD [MODULE...]`.

It imports the modules once (torch takes seconds), then forks one process per attempt and reports how each ended. Without modules each
attempt is a fresh interpreter. It is single-threaded and never runs a tensor operation, so a fork is safe.

Why a process of our own and not `multiprocessing`'s fork server: malloc settings must be in the environment before it starts, an attempt
needs its own log file, process group and peak memory (`wait4`), and when the controller dies, attempts must get SIGTERM first.

Speaks JSON lines over the socket `FD`. In: `start` {id, module, arguments, log, environment, threads}, `signal` {id, signal}.
Out: `ready`, `ended` {id, status, peak_memory_bytes}. A closed socket means that the controller is gone: stop everything and leave.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, NoReturn

ORPHAN_GRACE_SECONDS = 30.0
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve until the controller closes the socket; in a forked child: become the attempt."""
    server = Launcher(socket.socket(fileno=int(arguments[0])))
    wake_up, on_child = os.pipe()
    os.set_blocking(on_child, False)
    os.set_blocking(wake_up, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(on_child, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload(arguments[1:])
    server.send({"event": "ready"})
    request = server.serve(wake_up)
    if request is not None:
        signal.set_wakeup_fd(-1)
        os.close(wake_up)
        os.close(on_child)
        redirect(request)
        if arguments[1:]:
            run_forked(request)
        os.execv(sys.executable, [sys.executable, "-m", request["module"], *request["arguments"]])
    return 0


def preload(modules: list[str]) -> None:
    """Import what is there; what is missing is the stage's to report."""
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child then leaves these pages alone, and they stay shared


@dataclass
class Launcher:
    """The server's state: its socket, and the attempts that run, by process id."""

    control: socket.socket
    running: dict[int, str] = field(default_factory=dict)
    received: bytes = b""

    def serve(self, wake_up: int) -> dict[str, Any] | None:
        """Handle requests and ended children. Returns None at the end, or in a forked child the request that it must run."""
        while True:
            readable, _, _ = select.select([self.control.fileno(), wake_up], [], [])
            if wake_up in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_up, 4096)
                self.reap()
            if self.control.fileno() not in readable:
                continue
            chunk = self._receive()
            if not chunk:
                self._stop_orphans()
                return None
            *lines, self.received = (self.received + chunk).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["op"] == "signal":
                    self._signal(request)
                elif self._fork(request):
                    return dict(request)

    def send(self, event: dict[str, Any]) -> None:
        """Tell the controller; when it is gone, the next read says so."""
        with contextlib.suppress(OSError):
            self.control.sendall(json.dumps(event).encode() + b"\n")

    def reap(self) -> None:
        """Report every child that has ended, and take its left-over process group with it (a server that it had started)."""
        while self.running:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ended.si_pid, signal.SIGKILL)
            pid, status, usage = os.wait4(ended.si_pid, 0)
            identity = self.running.pop(pid, None)
            if identity is not None:
                peak = usage.ru_maxrss * 1024
                self.send({"event": "ended", "id": identity, "status": os.waitstatus_to_exitcode(status), "peak_memory_bytes": peak})

    def _receive(self) -> bytes:
        try:
            return self.control.recv(65536)
        except ConnectionError:
            return b""

    def _signal(self, request: dict[str, Any]) -> None:
        for pid, identity in self.running.items():
            if identity == request["id"]:
                _signal_attempt(pid, request["signal"])

    def _fork(self, request: dict[str, Any]) -> bool:
        """Start an attempt; True in the child."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.running[pid] = request["id"]
            return False
        self.control.close()
        self.running.clear()
        os.setsid()
        die_with_parent(parent)
        return True

    def _stop_orphans(self) -> None:
        for pid in list(self.running):
            _signal_attempt(pid, signal.SIGTERM)
        deadline = time.monotonic() + ORPHAN_GRACE_SECONDS
        while self.running and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.02)
        for pid in list(self.running):
            _signal_attempt(pid, signal.SIGKILL)
        while self.running:
            self.reap()
            time.sleep(0.02)


def redirect(request: dict[str, Any]) -> None:
    """In the child: default signals, the attempt's log file as output, its environment."""
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])


def run_forked(request: dict[str, Any]) -> NoReturn:
    """In the child: call the job's `main` and leave with its exit code.

    Ends as `multiprocessing` does, without tearing the interpreter down: freeing what torch has imported touches every shared page and
    takes longer than many a stage.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(request["threads"])
    sys.argv = [request["module"], *request["arguments"]]
    code = 1
    try:
        code = int(importlib.import_module(request["module"]).main(request["arguments"]) or 0)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as every interpreter does at its end
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux); the parent may have died just before."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _signal_attempt(pid: int, number: int) -> None:
    """SIGTERM goes to the stage alone, which stops what it has started; SIGKILL takes the whole group."""
    if number == signal.SIGKILL:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
