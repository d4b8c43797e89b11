"""What holds for every test here: logs are asked for again at once, and no test leaves their readers at work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from itool.cluster import pod_logs
from tests.cluster.runner_scenes import OPENED


@pytest.fixture(autouse=True)
def _short_pauses_and_no_leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pod_logs, "PAUSE_SECONDS", 0.01)
    yield
    while OPENED:
        OPENED.pop().pod_logs.close(0.0)
