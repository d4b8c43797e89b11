"""How often a stage saves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.checkpoints import saving


def test_the_first_save_is_due_and_the_next_after_twenty_times_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, found, saves = 100.0, 0, []

    def save_checkpoint(_folder: Path, done: int) -> None:
        nonlocal now
        now += 2.0
        saves.append(done)

    monkeypatch.setattr("jobs.checkpoints.time", SimpleNamespace(monotonic=lambda: now))
    stage: Any = SimpleNamespace(scratch=tmp_path, save_checkpoint=save_checkpoint)
    with saving(stage, lambda _folder: None, lambda: found) as reached:
        for moment, results in ((100.0, 1), (141.9, 2), (142.0, 3)):
            now, found = moment, results
            reached()
    assert saves == [1, 3]
