"""What the stages share that save results as they find them: when a checkpoint is written. No stage of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from itool.artifacts.stage import Stage
from itool.errors import DependencyError, Interrupted

WORK_PER_SAVE = 20.0
"""A checkpoint holds all results so far; the next one waits until the work has taken this many times what the last one cost."""


@contextmanager
def saving(stage: Stage, write: Callable[[Path], None], count: Callable[[], int]) -> Iterator[Callable[[], None]]:
    """Gives `reached()`, to be called between two pieces of work, where another attempt can go on exactly.

    It saves what `write` puts into a folder, when that is a small part of the time. When the work is stopped or its engine is gone, what
    is not saved yet is saved before the error goes on. `count()` says how many results there are: what an earlier attempt has saved at
    first, and only those of whole pieces later.
    """
    saved, due_at = count(), float("-inf")

    def save() -> None:
        nonlocal saved, due_at
        began, done = time.monotonic(), count()
        with tempfile.TemporaryDirectory(dir=stage.scratch) as folder:
            write(Path(folder))
            stage.save_checkpoint(Path(folder), done)
        saved, ended = done, time.monotonic()
        due_at = ended + WORK_PER_SAVE * (ended - began)

    def reached() -> None:
        if count() > saved and time.monotonic() >= due_at:
            save()

    try:
        yield reached
    except (Interrupted, DependencyError):
        if count() > saved:
            save()
        raise
