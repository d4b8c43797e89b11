"""What a person sees while a run works: bars with rates on a terminal, one line per event elsewhere. All of it on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from itool.cli.echo import echo
from itool.cli.tables import duration, size
from itool.cluster.decide import Action, Fail, StartStage, StopStage, Wait
from itool.cluster.progress import Progress as Reported
from itool.cluster.runner import NOT_BEGUN, Attempt, Task
from itool.config import RunConfig
from itool.errors import Interrupted
from itool.visible import visible

PLAIN_INTERVAL_SECONDS = 15.0


@dataclass
class PlainDisplay:
    """One line per start, end and failure, and a progress line now and then."""

    stages_live_on: bool = False
    attempts_ended: int = 0
    _said: dict[Task, float] = field(default_factory=dict)

    def decided(self, action: Action) -> None:
        """Say what starts, why something is tried again, and what is waited for."""
        if isinstance(action, StartStage):
            again = f" (attempt {action.attempt})" if action.attempt > 1 else ""
            self.say(f"{action.task.label}: starting{again}: {action.reason}")
        elif isinstance(action, Wait) and action.seconds is not None:
            self.say(f"{action.reason}; next try in {action.seconds:.0f} s")
        elif isinstance(action, Wait) and not action.reason.endswith(" running"):
            self.say(action.reason)
        elif isinstance(action, StopStage):
            self.say(f"{action.task.label}: attempt {action.attempt} is stopped: {action.reason}")
        elif isinstance(action, Fail):
            self.say(f"{action.stage}: failed")

    def progressed(self, task: Task, progress: Reported) -> None:
        """Now and then."""
        now = time.monotonic()
        if now - self._said.setdefault(task, now) >= PLAIN_INTERVAL_SECONDS:
            self._said[task] = now
            self.say(f"{task.label}: {progress.text} {figures(progress)}".rstrip())

    def ended(self, task: Task, attempt: Attempt) -> None:
        """How it went, how long it took, and how much memory."""
        self.attempts_ended += 1
        self._said.pop(task, None)
        self.say(ending(task, attempt))

    def stopping(self) -> None:
        """Ctrl-C was heard."""
        self.say("stopping: Jobs go on" if self.stages_live_on else "stopping: long stages save a checkpoint; Ctrl-C again stops at once")

    def say(self, line: str) -> None:
        """A line to standard error."""
        echo(line, err=True)


@dataclass
class BarDisplay(PlainDisplay):
    """A bar per running attempt, finished stages as lines above."""

    progress: Progress = field(default_factory=lambda: open_bars(Console(stderr=True, emoji=False)))
    _bars: dict[Task, TaskID] = field(default_factory=dict)

    def decided(self, action: Action) -> None:
        """A start becomes a bar; what is unusual becomes a line."""
        if isinstance(action, StartStage):
            self._begin(action.task)
            if action.attempt == 1:
                return
        super().decided(action)

    def progressed(self, task: Task, progress: Reported) -> None:
        """Move the bar; an attempt that another controller started gets its bar here."""
        if task not in self._bars:
            self._begin(task)
        text = f"{visible(progress.text)}  {figures(progress)}"
        self.progress.update(self._bars[task], completed=progress.done, total=progress.total, figures=text)

    def ended(self, task: Task, attempt: Attempt) -> None:
        """The bar gives way to a line."""
        if task in self._bars:
            self.progress.remove_task(self._bars.pop(task))
        super().ended(task, attempt)

    def say(self, line: str) -> None:
        """A line above the bars."""
        self.progress.console.print(visible(line), markup=False, highlight=False)

    def _begin(self, task: Task) -> None:
        self._bars[task] = self.progress.add_task(task.label, total=None, figures="starting")


@contextmanager
def open_display(config: RunConfig) -> Iterator[PlainDisplay]:
    """Bars on a terminal, lines elsewhere."""
    stages_live_on = config.runtime.backend == "kubernetes"
    if not sys.stderr.isatty():
        yield PlainDisplay(stages_live_on)
        return
    display = BarDisplay(stages_live_on)
    with display.progress:
        yield display


def ending(task: Task, attempt: Attempt) -> str:
    """`i1-score: done in 8.4 s, 812.0 MiB`, or why not."""
    took = duration((attempt.ended_at or attempt.started_at) - attempt.started_at)
    if attempt.phase == "succeeded":
        memory = f", {size(attempt.peak_memory_bytes)}" if attempt.peak_memory_bytes else ""
        return f"{task.label}: done in {took}{memory}"
    if attempt.reason == NOT_BEGUN:
        return f"{task.label}: {NOT_BEGUN}"
    code = attempt.exit_code
    how = "stopped" if code == Interrupted.exit_code else "failed" if code is None else f"exit code {code}"
    return f"{task.label}: {how} after {took}{': ' + attempt.reason if attempt.reason else ''}"


def figures(progress: Reported) -> str:
    """The rate first, then what else the stage reports."""
    parts: list[str] = []
    for name, value in progress.figures.items():
        if name == "rate" and value is not None:
            parts.insert(0, f"{_number(value)} {progress.unit}/s")
        elif value is not None and name != "rate":
            parts.append(f"{name} {_number(value)}")
    return visible("  ".join(parts))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def open_bars(console: Console) -> Progress:
    """On a narrow terminal the bar gives way, not the figures and times."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
    )
