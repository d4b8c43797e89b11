"""Supervised fine-tuning of a LoRA adapter: the warm-up, Eq. (2)-(3), and the controls that continue it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from itool.config import DpoConfig, ModelConfig, OptimizerConfig, WarmupConfig
from itool.train.distributed import Workers
from itool.train.hooks import TrainingHooks, TrainingLog
from itool.train.losses import nll
from itool.train.model import load_adapter, load_model, new_adapter, pass_cost_tokens, response_logps
from itool.train.sequences import TokenSequence, batch_sequences, bucket, draw
from itool.train.updates import UpdateTrainer, check_fits, fingerprint, repeatable_kernels, row_numbers, run_updates, training_arguments


@dataclass(frozen=True)
class SftUpdate:
    """Rows of one update and the curriculum phase that it belongs to (0-based)."""

    rows: Sequence[int]
    phase: int = 0


def train_sft(
    model_dir: Path,
    sequences_by_phase: Mapping[str, Sequence[TokenSequence]],
    *,
    model: ModelConfig,
    settings: WarmupConfig,
    seed: int,
    output: Path,
    hooks: TrainingHooks | None = None,
) -> TrainingLog:
    """Warm-up, Eq. (2)-(3), arXiv 2501.09766v1: a new adapter, trained on each phase in the order given (easy, medium, hard).

    The loss is on response tokens only. `curriculum: mixed` draws the same number of updates from all phases together. Writes the adapter
    to `output`. Raises InputError, NumericalError, Interrupted, DependencyError.
    """
    rows = [sequence for phase in sequences_by_phase.values() for sequence in phase]
    plan = plan_curriculum([len(phase) for phase in sequences_by_phase.values()], settings, seed)
    return _train(model_dir, rows, plan, adapter_in=None, config=model, settings=settings, seed=seed, output=output, hooks=hooks)


def continue_sft(
    model_dir: Path,
    sequences: Sequence[TokenSequence],
    replay: Sequence[TokenSequence],
    *,
    adapter_in: Path,
    model: ModelConfig,
    settings: DpoConfig,
    seed: int,
    output: Path,
    hooks: TrainingHooks | None = None,
) -> TrainingLog:
    """The controls `sft_continued` and `rejection_sampling`: as many updates, and as many sequences in each, as preference training.

    Two `sequences` stand for each pair; `replay` takes the same share as there.
    """
    plan = plan_continuation(len(sequences), len(replay), settings, seed)
    rows = [*sequences, *replay]
    return _train(model_dir, rows, plan, adapter_in=adapter_in, config=model, settings=settings, seed=seed, output=output, hooks=hooks)


def plan_curriculum(counts: Sequence[int], settings: WarmupConfig, seed: int) -> list[SftUpdate]:
    """Which rows each update sees; rows of phase k follow those of the phases before it. Empty phases are skipped."""
    updates = [max(1, round(settings.epochs * count / settings.batch_examples)) if count else 0 for count in counts]
    if settings.curriculum == "mixed":
        drawn = draw(sum(counts), sum(updates), settings.batch_examples, seed=seed, salt="mixed") if sum(counts) else []
        return [SftUpdate(rows) for rows in drawn]
    plan, offset = [], 0
    for phase, (count, phase_updates) in enumerate(zip(counts, updates, strict=True)):
        if count:
            drawn = draw(count, phase_updates, settings.batch_examples, seed=seed, salt=f"phase {phase}")
            plan += [SftUpdate([offset + row for row in rows], phase) for rows in drawn]
        offset += count
    return plan


def replay_sequences(settings: DpoConfig, available: int) -> int:
    """Replayed sequences per update: `replay_fraction` of all sequences in it, a pair counting as two."""
    return round(2 * settings.batch_pairs * settings.replay_fraction / (1 - settings.replay_fraction)) if available else 0


def plan_continuation(count: int, replay_count: int, settings: DpoConfig, seed: int) -> list[SftUpdate]:
    """Rows below `count` are new, those after it replayed."""
    if not count:
        return []
    new = draw(count, settings.updates, 2 * settings.batch_pairs, seed=seed, salt="pairs")
    per_update = replay_sequences(settings, replay_count)
    old = draw(replay_count, settings.updates, per_update, seed=seed, salt="replay") if per_update else [[]] * settings.updates
    return [SftUpdate([*rows, *(count + row for row in replayed)]) for rows, replayed in zip(new, old, strict=True)]


class TokenSftTrainer(UpdateTrainer, SFTTrainer):  # type: ignore[misc] # TRL ships no types
    """TRL's SFTTrainer over prepared token ids."""

    def __init__(
        self,
        *arguments: Any,
        sequences: Sequence[TokenSequence],
        plan: Sequence[SftUpdate],
        batch_tokens: int,
        workers: Workers,
        **settings: Any,
    ) -> None:
        self.sequences, self.plan, self.batch_tokens, self.workers = sequences, plan, batch_tokens, workers
        self.training_log = TrainingLog()
        super().__init__(*arguments, train_dataset=row_numbers(plan), **settings)

    def update_loss(self, model: Any, update: SftUpdate) -> tuple[float, dict[str, float], int]:
        rows = [self.sequences[row] for row in update.rows]
        [loss] = self.workers.sum([sft_backward(self.accelerator, model, rows, self.batch_tokens, self.workers)])
        return loss, {"phase": update.phase}, sum(map(len, rows))


def sft_backward(accelerator: Any, model: Any, rows: Sequence[TokenSequence], batch_tokens: int, workers: Workers) -> float:
    """Forward and backward of this worker's part of the update's mean token loss, bucket by bucket; no cut changes what it adds up to."""
    tokens = sum(len(row.response_ids) for row in rows)
    rows = [rows[index] for index in workers.share([len(row) for row in rows])]
    losses = []
    for group in bucket([len(row) for row in rows], batch_tokens, pass_cost_tokens=pass_cost_tokens(model)):
        loss = nll(response_logps(model, batch_sequences([rows[index] for index in group])), tokens)
        accelerator.backward(loss)
        losses.append(loss.detach())
    return float(sum(losses))


def _train(
    model_dir: Path,
    rows: Sequence[TokenSequence],
    plan: Sequence[SftUpdate],
    *,
    adapter_in: Path | None,
    config: ModelConfig,
    settings: OptimizerConfig,
    seed: int,
    output: Path,
    hooks: TrainingHooks | None,
) -> TrainingLog:
    base = load_model(model_dir, dtype=config.dtype)
    check_fits(base, rows)
    model = load_adapter(base, adapter_in, trainable=True) if adapter_in else new_adapter(base, config, seed=seed)
    read = settings.model_dump(include=set(OptimizerConfig.model_fields) - {"checkpoint_seconds"})  # the plan holds what else is read
    identity = fingerprint(rows, plan, read, config, seed)
    hooks = hooks or TrainingHooks()
    with repeatable_kernels(), tempfile.TemporaryDirectory(prefix="itool-sft-") as scratch:
        trainer = TokenSftTrainer(
            model,
            training_arguments(SFTConfig, model, updates=len(plan), settings=settings, seed=seed, scratch=scratch),
            sequences=rows,
            plan=plan,
            batch_tokens=settings.batch_tokens,
            workers=hooks.workers,
            processing_class=AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False),
        )
        hooks.on_loaded()
        return run_updates(trainer, settings, hooks, output=output, identity=identity)
