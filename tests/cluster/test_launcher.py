"""How a forked stage leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from itool.errors import StorageError
from tests.fakes.waiting import lives


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("ends", ["return 74", "raise SystemExit(74)"])
def test_a_full_disk_under_its_log_does_not_change_its_exit_code(ends: str, tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(f"def main(argv):\n    print('a word that waits in the buffer')\n    {ends}\n")
    code = "from itool.cluster.launcher import run_forked; run_forked({'module': 'chatty', 'arguments': [], 'threads': 1})"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    environment.pop("PYTHONUNBUFFERED", None)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=full, stderr=full, check=False)
    assert done.returncode == StorageError.exit_code


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
ORPHANED = f"""
import socket, subprocess, sys
from itool.cluster import launcher
launcher.ORPHAN_GRACE_SECONDS = 0.1
stage = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE, start_new_session=True)
stage.stdout.readline()
made = launcher.Launcher(socket.socketpair()[0], {{stage.pid: "i0-prepare-1"}})
made._stop_orphans()
print(stage.pid, made.running)
"""


def test_a_stage_that_does_not_listen_is_killed_when_the_controller_is_gone() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True, timeout=40, check=True)
    pid, _, running = done.stdout.strip().partition(" ")
    assert running == "{}"
    assert not lives(int(pid))
