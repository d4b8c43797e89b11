"""In which order tests run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.conftest import pytest_collection_modifyitems


@dataclass(frozen=True)
class Item:
    """A test with its markers."""

    name: str
    markers: str = ""

    def get_closest_marker(self, name: str) -> bool:
        return name in self.markers.split()


def test_each_half_begins_with_long_tests_and_who_disturbs_all_others_comes_last() -> None:
    """Two workers take a half each, and the one that is ready first takes from the end of the other's."""
    quick = [Item(f"quick-{number}") for number in range(6)]
    long = [Item("pipeline", "slow"), Item("server", "vllm"), Item("both", "slow vllm"), Item("outage", "alone")]
    items: Any = [*quick[:3], *reversed(long), *quick[3:]]
    pytest_collection_modifyitems(items)
    names = [item.name for item in items]
    assert names == ["server", "quick-0", "quick-1", "quick-2", "quick-3", "both", "pipeline", "quick-4", "quick-5", "outage"]
