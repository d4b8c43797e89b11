"""What the training jobs share: their main, examples as tokens (`score` too), a stage as the trainer's surroundings, the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from itool.artifacts.process import exit_code_of, worker_count
from itool.artifacts.stage import Body, Stage, run_stage
from itool.data.chat import render_prompt, response_ids
from itool.errors import DependencyError
from itool.names import StageName
from itool.records import Example

if TYPE_CHECKING:
    from itool.train.hooks import TrainingHooks, TrainingLog
    from itool.train.sequences import TokenSequence


def run_training(name: StageName, body: Body, argv: list[str] | None) -> int:
    """`run_stage` for a stage that several processes may do together: they end with 0 only when all do, after rank 0's commit."""
    code = run_stage(name, body, argv)
    if code or worker_count() == 1:
        return code
    from itool.train.distributed import leave_workers  # noqa: PLC0415 - imports torch

    try:
        leave_workers()
    except DependencyError as error:
        return exit_code_of(error)
    return 0


def token_sequences(tokenizer: Any, examples: Sequence[Example]) -> list[TokenSequence]:
    """Prompt and ground-truth response of each example."""
    from itool.train.sequences import TokenSequence  # noqa: PLC0415 - imports torch

    return [TokenSequence(render_prompt(tokenizer, e), response_ids(tokenizer, e), e.id) for e in examples]


def training_hooks(stage: Stage) -> TrainingHooks:
    """Signals, checkpoints, progress and fellow workers of the stage, as a trainer asks for them."""
    from itool.train.distributed import join_workers  # noqa: PLC0415 - imports torch
    from itool.train.hooks import TrainingHooks  # noqa: PLC0415 - its package imports torch

    def show(done: int, total: int, metrics: Mapping[str, float]) -> None:
        stage.progress(done, total, "updates", loss=round(metrics["loss"], 4))

    return TrainingHooks(
        should_stop=stage.should_stop,
        save_checkpoint=stage.save_checkpoint,
        resume_from=stage.latest_checkpoint(),
        discard_checkpoints=stage.discard_checkpoints,
        on_loaded=stage.working,
        on_progress=show,
        workers=join_workers(timeout_seconds=stage.config.runtime.worker_timeout_seconds),
    )


def save_training(stage: Stage, log: TrainingLog) -> None:
    """One line per update, and the totals in the manifest."""
    stage.write("training.jsonl", log.metrics)
    stage.metrics({"updates": log.updates, "training_seconds": round(log.seconds, 3)})
    stage.tokens(log.tokens)
