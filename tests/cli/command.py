"""The command line as a process of its own, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fakes.jobs_path import fake_jobs_environment

Within = Callable[..., tuple[object, str, str]]
"""Exit code, standard output and standard error of a command in this process."""


class Itoolctl:
    """Runs commands in a folder of their own, with stages that take no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**fake_jobs_environment(), "FAKE_SCRIPT": str(folder / "script.json"), "FAKE_PIDS": str(folder)}
        self.environment.pop("ITOOL_ROOT", None)
        self.script()

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def open(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(arguments), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def script(self, **directives: list[str]) -> None:
        (self.folder / "script.json").write_text(json.dumps(directives))

    def stage_pids(self) -> list[int]:
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]

    @staticmethod
    def _command(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "itool.cli.main", *arguments]


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text
