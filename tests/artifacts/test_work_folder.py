"""A running stage's own folder: nobody takes it away, whatever else runs beside it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from itool.artifacts import work_folder
from itool.artifacts.stage import Stage
from tests.artifacts.conftest import Run
from tests.artifacts.test_stage import PREPARE
from tests.artifacts.test_stage_process import Launcher

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")
"""Containers on their host's network have its name, and none sees the processes of another."""


def test_a_stage_in_another_container_leaves_the_folder_of_one_that_runs_alone(folder_run: Run, tmp_path: Path) -> None:
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to hide processes")
    (tmp_path / "other").mkdir()
    other = Launcher(Run(folder_run.store, tmp_path / "other", run="other"), tmp_path / "other")

    def body(stage: Stage) -> None:
        stage.write_json("first.json", 1)
        assert other.start(0, *CONTAINER).wait(60) == 0
        stage.write_json("second.json", 2)

    assert folder_run.stage("prepare", body) == 0
    manifest = folder_run.resolution(PREPARE).manifest
    assert manifest is not None
    assert list(manifest.files) == ["first.json", "second.json"]


def test_a_stage_that_ends_takes_the_empty_parent_from_under_one_that_begins(folder_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_orphans, ended = work_folder._remove_orphans, []

    def another_ends(parent: Path) -> None:
        remove_orphans(parent)
        if not ended:
            ended.append(parent.rmdir())

    monkeypatch.setattr(work_folder, "_remove_orphans", another_ends)
    assert folder_run.stage("prepare", lambda stage: stage.write_json("x.json", 1)) == 0
    assert ended
