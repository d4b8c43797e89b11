"""What the stages share that save results as they find them: when a checkpoint is written. No stage of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from itool.artifacts.save_pace import SavePace
from itool.artifacts.stage import Stage
from itool.errors import DependencyError, Interrupted


@contextmanager
def saving(stage: Stage, write: Callable[[Path], None]) -> Iterator[Callable[[int], None]]:
    """Gives `reached(done)`, to be called after each piece of work from which another attempt can go on exactly.

    It saves what `write` puts into a folder, when that is a small part of the time. When the work is stopped or its engine is gone, what
    is not saved yet is saved before the error goes on.
    """
    pace, done, saved = SavePace(), 0, 0

    def save() -> None:
        nonlocal saved
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=stage.scratch) as folder:
            write(Path(folder))
            stage.save_checkpoint(Path(folder), done)
        saved = done
        pace.saved(began, time.monotonic())

    def reached(count: int) -> None:
        nonlocal done
        done = count
        if pace.due(time.monotonic()):
            save()

    try:
        yield reached
    except (Interrupted, DependencyError):
        if done > saved:
            save()
        raise
