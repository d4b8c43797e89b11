"""How a forked stage leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from itool.errors import StorageError


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
