"""What holds for every test: the longest begin first, and none leaves its logging behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """A command or a job that ran in this process has sent the log to that test's captured stderr, which is closed after it."""
    yield
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers end together only when no long test is left for the end; those with a real vLLM are the longest."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("slow", "vllm")])
