"""The `itoolctl` script in its first second, before it has read what it is to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_a_stop_signal_is_heard_while_the_first_heavy_module_is_imported(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    module, _, function = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]["itoolctl"].partition(":")
    script = [sys.executable, "-c", f"from {module} import {function}; {function}()"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    with subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (75, "interrupted: stopped by SIGTERM. Run the same command again\n")
