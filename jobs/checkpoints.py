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
def saving(stage: Stage, write: Callable[[Path], None], count: Callable[[], int]) -> Iterator[Callable[[], None]]:
    """Gives `reached()`, to be called between two pieces of work, where another attempt can go on exactly.

    It saves what `write` puts into a folder, when that is a small part of the time. When the work is stopped or its engine is gone, what
    is not saved yet is saved before the error goes on. `count()` says how many results there are: what an earlier attempt has saved at
    first, and only those of whole pieces later.
    """
    pace, saved = SavePace(), count()

    def save() -> None:
        nonlocal saved
        began, done = time.monotonic(), count()
        with tempfile.TemporaryDirectory(dir=stage.scratch) as folder:
            write(Path(folder))
            stage.save_checkpoint(Path(folder), done)
        saved = done
        pace.saved(began, time.monotonic())

    def reached() -> None:
        if count() > saved and pace.due(time.monotonic()):
            save()

    try:
        yield reached
    except (Interrupted, DependencyError):
        if count() > saved:
            save()
        raise
