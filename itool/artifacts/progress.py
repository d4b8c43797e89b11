"""Progress of long work as log events, few enough to read and often enough for whoever draws a bar from the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from itool.logs import get_logger

INTERVAL_SECONDS = 0.5
_log = get_logger(__name__)


class Progress:
    """Emits the event `progress` with done, total, unit and rate (units per second since the work began)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._first = 0
        self._latest: tuple[int, str] | None = None
        self._emitted = float("-inf")

    def report(self, done: int, total: int, unit: str, **figures: Any) -> None:
        """Tell how far the work is. Another unit or a smaller `done` begins a new piece of work."""
        now = self._clock()
        if self._latest is None or unit != self._latest[1] or done < self._latest[0]:
            self._began, self._first, self._emitted = now, done, float("-inf")
        repeated = self._latest == (done, unit)
        self._latest = (done, unit)
        if now - self._emitted < INTERVAL_SECONDS and (done < total or repeated):
            return
        self._emitted = now
        elapsed = now - self._began
        rate = round((done - self._first) / elapsed, 2) if elapsed > 0 else None
        _log.info("progress", done=done, total=total, unit=unit, rate=rate, **figures)
