"""Prepare: what it says when the data and the settings do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.prepare import main


def prepare(folder: Path, *settings: str) -> int:
    chosen = [f"root={folder}", "data.count=40", "data.held_out_count=20", *settings]
    return main([flag for setting in chosen for flag in ("--set", setting)])


def test_a_context_that_is_too_short_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, "model.context_tokens=129") == 65
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "stage i0/prepare dropped 60 of 60 records (prompt_too_long 60), more than data.max_dropped_fraction 0.2" in message
    assert "Raise model.context_tokens = 129 or lower model.max_response_tokens = 128, or raise that limit" in message


def test_an_empty_set_names_what_was_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, "model.max_response_tokens=12", "data.max_dropped_fraction=0.99", "data.buffer_fraction=0.001") == 65
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "the buffer set is empty (dropped: response_too_long " in message
    assert "Raise model.max_response_tokens = 12. Give more data, or raise data.buffer_fraction" in message
