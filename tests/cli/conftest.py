"""The command line as a process of its own, and within this one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from itool.cli.main import main
from tests.cli.command import Itoolctl, Within


@pytest.fixture
def itoolctl(tmp_path: Path) -> Itoolctl:
    return Itoolctl(tmp_path)


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Within:
    """Runs a command that fails within this process, as most of its time would be the start of its own."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["itoolctl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ITOOL_ROOT", raising=False)
    return run
