"""When a long stage saves what it has: often enough that little is lost, seldom enough that saving stays a small part of its time."""

from __future__ import annotations

WORK_PER_SAVE = 20.0
"""A checkpoint holds all results so far; the next one waits until the work has taken this many times what the last one cost."""


class SavePace:
    """Times are of one monotonic clock, in seconds. The first save is due at once."""

    def __init__(self) -> None:
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        """Whether enough work was done since the last save."""
        return now >= self._next

    def saved(self, began: float, ended: float) -> None:
        """Note a save and what it cost."""
        self._next = ended + WORK_PER_SAVE * (ended - began)
