"""Paths as they are opened and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from itool.artifacts.store import FolderStore
from itool.commands import itoolctl
from itool.paths import absolute_path, local_path


def test_a_step_up_is_taken_and_a_link_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "runs")
    monkeypatch.chdir(tmp_path / "work")
    assert absolute_path(Path("../other/./runs")) == tmp_path / "other" / "runs"
    assert absolute_path(Path("../link/demo")) == tmp_path / "link" / "demo"
    assert absolute_path(Path("../link/demo/..")) == tmp_path / "link"
    assert absolute_path(Path("../link/..")) == tmp_path / "disk", "as the system takes it"
    assert absolute_path(Path("/../x")) == Path("/x")


def test_a_root_above_is_named_as_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("ITOOL_ROOT", "../runs")
    assert FolderStore(Path("../runs")).root == str(tmp_path / "runs")
    assert itoolctl("status", str(tmp_path / "runs")) == "`itoolctl status`", "the variable leads there"


def test_the_home_of_nobody_is_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/runs") == Path("/home/me/runs")
    assert FolderStore(Path("~nobody-of-that-name/runs")).root == str(tmp_path / "~nobody-of-that-name" / "runs")
