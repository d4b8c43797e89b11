"""A program that is stopped in its first second: a module that takes a minute to import stands in the place of a heavy one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def stop_while_importing(module: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of Python with these arguments, which gets SIGTERM while it imports `module`, from `folder`."""
    (folder / f"{module}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{folder}:{REPOSITORY}"}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    return process.returncode, said
