"""A server must not outlive the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from itool.policy import guard

STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def test_the_guard_ends_as_its_server_ended() -> None:
    for program, code in {"raise SystemExit(3)": 3, "import os; os.kill(os.getpid(), 9)": -signal.SIGKILL}.items():
        command = [sys.executable, "-I", guard.__file__, str(os.getpid()), sys.executable, "-c", program]
        assert subprocess.run(command, check=False, start_new_session=True).returncode == code


def test_a_server_that_ignores_sigterm_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    seen = tmp_path / "pid"
    quick = Path(guard.__file__).read_text().replace("STOP_SECONDS = 10.0", "STOP_SECONDS = 0.5")
    program = tmp_path / "guard.py"
    program.write_text(quick)
    parent = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-I', {str(program)!r}, str(os.getpid()), sys.executable, '-c', {STUBBORN!r}, {str(seen)!r}],"
        " start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    wait_for(lambda: seen.exists() and bool(seen.read_text()))
    process.kill()
    process.wait()
    wait_for(lambda: not process_runs(int(seen.read_text())))
    assert not process_runs(int(seen.read_text()))


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def process_runs(process_id: int) -> bool:
    """Whether a process is alive; one that nobody reaped yet is not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
