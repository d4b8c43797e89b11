"""What a trainer asks of its surroundings, and what it gives back. No storage here: a stage passes callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from itool.train.distributed import ALONE, Workers


@dataclass(frozen=True)
class TrainingHooks:
    """`should_stop` is asked before every batch of the reference and after every update; `save_checkpoint(folder, update)` must have
    copied the folder when it returns.

    `resume_from` is such a folder; `discard_checkpoints` is called when it is another training's; `on_loaded` when the model is ready to
    compute, `on_progress(done, total, metrics)` after every update. Of several `workers` each has its own hooks: one that wants to stop
    stops them all, and rank 0 alone saves and discards.
    """

    should_stop: Callable[[], bool] = lambda: False
    save_checkpoint: Callable[[Path, int], None] | None = None
    resume_from: Path | None = None
    discard_checkpoints: Callable[[], None] = lambda: None
    on_loaded: Callable[[], None] = lambda: None
    on_progress: Callable[[int, int, Mapping[str, float]], None] = lambda *_: None
    workers: Workers = ALONE


@dataclass
class TrainingLog:
    """One dict of metrics per update; `tokens` counts real (unpadded) input tokens, `seconds` the updates alone, over all attempts."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def updates(self) -> int:
        """Optimiser steps taken."""
        return len(self.metrics)
