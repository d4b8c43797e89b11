"""What holds for every test: none leaves its logging behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """A command or a job that ran in this process has sent the log to that test's captured stderr, which is closed after it."""
    yield
    structlog.reset_defaults()
