"""docs/configuration.md says what the code says."""

from __future__ import annotations

from pathlib import Path

from itool.config_reference import reference

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make reference`"


def test_every_setting_is_described() -> None:
    assert [line for line in reference().splitlines() if line.endswith("| None |")] == []
