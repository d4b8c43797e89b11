"""What the Makefile and `.ci/run` leave behind when something fails in them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.fakes.waiting import lives, wait_until

REPOSITORY = Path(__file__).resolve().parents[1]


def program(folder: Path, name: str, text: str) -> Path:
    """An executable of the shell."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_environment_that_could_not_be_made_is_made_again(tmp_path: Path) -> None:
    """A Python without ensurepip leaves an interpreter without pip, which the next `make` would take for an environment."""
    python = tmp_path / "venv/bin/python"
    half = program(tmp_path, "half", f"mkdir -p {python.parent}; ln -s /bin/sh {python}; exit 1")
    whole = program(tmp_path, "whole", f"touch {python}")
    for command, code in ((half, 2), (whole, 0)):
        make = ["make", str(python), f"PYTHON={command}", f"VENV={tmp_path / 'venv'}"]
        assert subprocess.run(make, cwd=REPOSITORY, capture_output=True, check=False).returncode == code
    assert not python.is_symlink()


def test_the_list_of_targets_is_one_table() -> None:
    said = subprocess.run(["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "$(" not in said
    assert len({re.match(r"  [a-z0-9-]+ +", line).end() for line in said.splitlines()}) == 1


def test_ci_that_fails_leaves_nothing_running_in_the_background(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    fails_at_lint = f"""case $1 in
install-vllm) sh -c 'echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 600'; exit ;;
lint) while ! [ -e {pid} ]; do sleep 0.01; done; exit 3 ;;
esac"""
    program(tmp_path, "make", fails_at_lint)
    program(tmp_path, "chromium", "")
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CI_CLUSTER": "0"}
    with (tmp_path / "said").open("w") as said:
        done = subprocess.run([REPOSITORY / ".ci/run"], env=environment, stdout=said, stderr=said, check=False, timeout=60)
    assert done.returncode == 3, (tmp_path / "said").read_text()
    wait_until(lambda: not lives(int(pid.read_text())))
