"""The name of an attempt's log says which attempt it is."""

from __future__ import annotations

import pytest

from itool.cluster.log_names import LogName, log_key, parse_log_name


@pytest.mark.parametrize("name", [LogName(0, "prepare", None, 1), LogName(12, "generate", 0, 3)])
def test_a_name_is_read_back(name: LogName) -> None:
    assert parse_log_name(str(name)) == name


def test_a_log_lies_in_its_runs_folder() -> None:
    assert log_key("demo", LogName(1, "generate", 7, 2)) == "demo/logs/i1-generate-7-2.log"


def test_other_files_are_no_logs() -> None:
    assert [parse_log_name(name) for name in ("launcher.log", "i1-score.log", "i1-score-1.txt")] == [None] * 3
