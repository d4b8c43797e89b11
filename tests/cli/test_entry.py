"""The `itoolctl` script in its first second, before it has read what it is to do."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.fakes.slow_import import REPOSITORY, stop_while_importing


def test_a_stop_signal_is_heard_while_the_first_heavy_module_is_imported(tmp_path: Path) -> None:
    module, _, function = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]["itoolctl"].partition(":")
    ended = stop_while_importing("typer", tmp_path, "-c", f"from {module} import {function}; {function}()")
    assert ended == (75, "interrupted: stopped by SIGTERM. Run the same command again\n")
