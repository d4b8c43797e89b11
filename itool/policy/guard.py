"""Runs a server as its child and takes it down with everything it started when the process that asked for it is gone.

    python -I guard.py PARENT_PID COMMAND ...

A program of its own, without imports from iTool: vLLM starts further processes, ignores SIGTERM while it loads, and outlives a parent that
was killed. Leads a process group of its own; SIGTERM to the group is the server's to handle.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.5
STOP_SECONDS = 10.0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    parent = int(sys.argv[1])
    server = subprocess.Popen(sys.argv[2:])
    while server.poll() is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGTERM)
            _wait(server, STOP_SECONDS)
            os.killpg(0, signal.SIGKILL)
        _wait(server, POLL_SECONDS)
    if server.returncode < 0:  # end as the server ended, so that the parent sees the signal
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -server.returncode)
    return server.returncode


def _wait(server: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
