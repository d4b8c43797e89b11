"""What the two training jobs share: examples as token sequences, a stage as the trainer's surroundings, the log as artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from itool.artifacts.stage import Stage
from itool.data.chat import render_prompt, response_ids
from itool.records import Example

if TYPE_CHECKING:
    from itool.train.hooks import TrainingHooks, TrainingLog
    from itool.train.sequences import TokenSequence


def token_sequences(tokenizer: Any, examples: Sequence[Example]) -> list[TokenSequence]:
    """Prompt and ground-truth response of each example."""
    from itool.train.sequences import TokenSequence  # noqa: PLC0415 - imports torch

    return [TokenSequence(render_prompt(tokenizer, e), response_ids(tokenizer, e), e.id) for e in examples]


def training_hooks(stage: Stage) -> TrainingHooks:
    """Signals, checkpoints and progress of the stage, as a trainer asks for them."""
    from itool.train.hooks import TrainingHooks  # noqa: PLC0415 - its package imports torch

    def show(done: int, total: int, metrics: Mapping[str, float]) -> None:
        stage.progress(done, total, "updates", loss=round(metrics["loss"], 4))

    return TrainingHooks(
        should_stop=stage.should_stop,
        save_checkpoint=stage.save_checkpoint,
        resume_from=stage.latest_checkpoint(),
        on_progress=show,
    )


def save_training(stage: Stage, log: TrainingLog) -> None:
    """One line per update, and the totals in the manifest."""
    stage.write("training.jsonl", log.metrics)
    stage.metrics({"updates": log.updates, "training_seconds": round(log.seconds, 3)})
    stage.tokens(log.tokens)
