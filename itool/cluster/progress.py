"""Reads a running attempt's log for its `progress` events: how far, how fast."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from itool.cluster.decide import Action
from itool.cluster.runner import Attempt, Runner, Task

NOT_FIGURES = frozenset({"event", "level", "timestamp", "logger", "done", "total", "unit", "stage", "iteration", "shard", "run"})


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units; `figures` are what the stage wants to be seen (loss, rate, accuracy)."""

    done: float
    total: float
    unit: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """`12/40 updates`."""
        return f"{self.done:.0f}/{self.total:.0f} {self.unit}".rstrip()


class Watcher(Protocol):
    """Who looks on: a progress display, plain log lines, or a test."""

    def decided(self, action: Action) -> None:
        """The controller does something else than before."""

    def progressed(self, task: Task, progress: Progress) -> None:
        """A running attempt says how far it is."""

    def ended(self, task: Task, attempt: Attempt) -> None:
        """An attempt is over."""

    def stopping(self) -> None:
        """Somebody asked the run to stop; stages are saving their checkpoints."""


class NoWatcher:
    """A watcher that looks away."""

    def decided(self, action: Action) -> None:
        """Nothing."""

    def progressed(self, task: Task, progress: Progress) -> None:
        """Nothing."""

    def ended(self, task: Task, attempt: Attempt) -> None:
        """Nothing."""

    def stopping(self) -> None:
        """Nothing."""


@dataclass
class ProgressTail:
    """Remembers how far the log of each attempt that runs was read."""

    _offsets: dict[tuple[Task, int], int] = field(default_factory=dict)

    def read(self, runner: Runner, task: Task, attempt: int) -> Progress | None:
        """The newest progress event since the last call, or None."""
        offset = self._offsets.get((task, attempt), 0)
        output = runner.logs(task, attempt, offset)
        complete = output[: output.rfind(b"\n") + 1]
        self._offsets[task, attempt] = offset + len(complete)
        return last_progress(complete)

    def forget(self, task: Task, attempt: int) -> None:
        """The attempt has ended."""
        self._offsets.pop((task, attempt), None)


def last_progress(output: bytes) -> Progress | None:
    """The newest progress event in a log's lines."""
    return next((found for line in reversed(output.splitlines()) if (found := parse_progress(line))), None)


def parse_progress(line: bytes) -> Progress | None:
    """A log line's progress event; None for every other line."""
    if b'"progress"' not in line:
        return None
    try:
        event = json.loads(line)
        if event.get("event") != "progress":
            return None
        figures = {key: value for key, value in event.items() if key not in NOT_FIGURES}
        return Progress(float(event["done"]), float(event["total"]), str(event.get("unit", "")), figures)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
