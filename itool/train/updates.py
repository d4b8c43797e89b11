"""How both trainers use TRL: its dataset is a list of *updates*, and one training step is one whole update.

TRL and transformers keep model placement, gradient clipping, the optimiser's steps and the callbacks. Ours are the rows (token ids that
nobody touches), the forward pass (response positions only), accumulation over length buckets, checkpoints and the end by interruption.

Who calls what, top to bottom:
    TRL's __init__    _prepare_dataset, create_accelerator_and_postprocess, _send_telemetry
    train()           get_train_dataloader, _wrap_model, on_train_begin
    every update      get_batch_samples, training_step (with it update_loss), floating_point_ops, _clip_grad_norm,
                      the optimiser's and the schedule's step, on_step_end
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from itool.config import OptimizerConfig
from itool.errors import InputError, Interrupted, NumericalError
from itool.train.checkpoint import read_checkpoint, restore_random_state, write_checkpoint
from itool.train.distributed import Workers
from itool.train.hooks import TrainingHooks, TrainingLog
from itool.train.model import fold_small_adapters, save_adapter
from itool.train.optimizer import build_optimizer, build_schedule
from itool.train.sequences import StepPair, TokenSequence

CHECKPOINTED_PARAMETERS = 1_000_000_000
"""From this size on activations are recomputed in the backward pass; below, memory is not what is short."""


class UpdateTrainer:
    """Mixin before a TRL trainer: rows are updates, the loss of an update is `update_loss`. `plan[i]` is what update i trains on."""

    model: Any
    args: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    plan: Sequence[Any]
    training_log: TrainingLog
    workers: Workers

    def update_loss(self, model: Any, update: Any) -> tuple[float, dict[str, float], int]:
        """Run forward and backward over this worker's share of an update. Returns the whole update's loss, metrics and real tokens."""
        raise NotImplementedError

    def create_accelerator_and_postprocess(self) -> None:
        """Keep accelerate from wrapping the model: several workers add up their gradients themselves (distributed.py)."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc] # the TRL trainer behind this mixin has it
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _wrap_model(self, model: Any, **_settings: Any) -> Any:
        """Nor does transformers, which would spread one process over all GPUs that it sees."""
        return model

    def _send_telemetry(self) -> None:
        """TRL would report every training to its makers; a user's cluster may reach nobody."""

    def _prepare_dataset(self, dataset: Dataset, *_arguments: Any, **_settings: Any) -> Dataset:
        """TRL would tokenise, add an EOS and truncate here. Token ids go in unchanged."""
        return dataset

    def get_train_dataloader(self) -> Sequence[Any]:
        """The updates that remain, instead of batches of rows."""
        return self.plan[self.training_log.updates :]

    def get_batch_samples(self, updates: Iterator[Any], _batches: int, _device: torch.device) -> tuple[list[Any], None]:
        """One whole update is what transformers takes for the micro-batches of a step. Items are counted in `update_loss`."""
        return [next(updates)], None

    def floating_point_ops(self, _update: Any) -> int:
        """Not counted: transformers would guess from rows that ours do not have."""
        return 0

    def training_step(self, model: Any, update: Any, _items: Any = None) -> Tensor:
        """Gradients of one update, summed over the workers, and its line in the log. Returns 0 as loss: nobody reads transformers' sum."""
        model.train()
        rate = float(self.optimizer.param_groups[0]["lr"])
        update_number = self.training_log.updates + 1
        self.workers.seed_update(self.args.seed, update_number)
        loss, metrics, tokens = self.update_loss(model, update)
        self._require_finite("loss", loss)
        self.workers.sum_gradients(model.parameters())
        self.training_log.metrics.append({"update": update_number, "loss": loss, **metrics, "tokens": tokens, "learning_rate": rate})
        self.training_log.tokens += tokens
        return torch.zeros((), device=self.args.device)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """As transformers clips; the norm is checked and logged."""
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[misc] # the TRL trainer behind this mixin has it
        value = float(norm)
        self._require_finite("gradient norm", value)
        self.training_log.metrics[-1]["grad_norm"] = value
        return norm

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            update = self.training_log.updates + (what == "loss")
            blamed = "lower the learning rate" if update > 1 else "the base model gives it before any update: check its weights"
            raise NumericalError(
                f"{what} is {value} at update {update} of {len(self.plan)} (last loss {self._last_loss()})",
                remedy=f"Nothing was saved; {blamed}",
            )

    def _last_loss(self) -> str:
        return f"{self.training_log.metrics[-1]['loss']:.4g}" if self.training_log.metrics else "none"


class _Progress(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """After every update: count time, report, checkpoint, stop. Raising leaves `train()` for good, unlike transformers' own stop."""

    def __init__(self, trainer: Any, settings: OptimizerConfig, hooks: TrainingHooks, write: Callable[[Path], None]) -> None:
        self.trainer, self.settings, self.hooks, self.write = trainer, settings, hooks, write
        self.lap = self.saved = time.monotonic()
        self.random_state: dict[str, Any] | None = None

    def on_train_begin(self, *_arguments: Any, **_context: Any) -> None:
        if self.random_state is not None:
            restore_random_state(self.random_state)
        self.lap = self.saved = time.monotonic()

    def on_step_end(self, *_arguments: Any, **_context: Any) -> None:
        log, total, now = self.trainer.training_log, len(self.trainer.plan), time.monotonic()
        log.seconds += now - self.lap
        self.hooks.on_progress(log.updates, total, log.metrics[-1])
        if log.updates < total:
            self._checkpoint_or_stop(log, total, now)
        self.lap = time.monotonic()

    def _checkpoint_or_stop(self, log: TrainingLog, total: int, now: float) -> None:
        workers = self.hooks.workers
        stop = workers.any(self.hooks.should_stop())
        if not stop and now - self.saved < self.settings.checkpoint_seconds:
            return
        if self.hooks.save_checkpoint is not None and workers.rank == 0:
            with tempfile.TemporaryDirectory(prefix="itool-checkpoint-") as folder:
                self.write(Path(folder))
                self.hooks.save_checkpoint(Path(folder), log.updates)
        self.saved = time.monotonic()
        if stop:
            workers.sum([0.0])  # nobody leaves before the checkpoint is stored: a launcher ends the others when one has left
            raise Interrupted(f"training stopped after update {log.updates} of {total}", remedy="Start it again to continue")


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Let a GPU give the same bytes every time: without this, sums by owner and the gradient of masked attention add up in any order.

    Enter it before anything is computed on the GPU. An operation that has no repeatable version there then raises RuntimeError.
    """
    if not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with a workspace of fixed size
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]


def training_arguments(kind: Any, model: Any, *, updates: int, settings: OptimizerConfig, seed: int, scratch: str) -> Any:
    """Arguments of a TRL trainer that does nothing beside the updates: no logging, no saving, no mixed precision of its own."""
    return kind(
        output_dir=scratch,
        max_steps=updates,
        per_device_train_batch_size=1,
        max_grad_norm=settings.max_grad_norm,
        max_length=None,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=model.num_parameters() >= CHECKPOINTED_PARAMETERS,
        logging_nan_inf_filter=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=seed,
    )


def row_numbers(plan: Sequence[Any]) -> Dataset:
    """What TRL is given as its dataset: one row per update. The ids stay in Python lists, which need no conversion per update."""
    return Dataset.from_dict({"update": list(range(len(plan)))})


def run_updates(trainer: Any, settings: OptimizerConfig, hooks: TrainingHooks, *, output: Path, identity: str) -> TrainingLog:
    """Train to the end of the plan, from a checkpoint when there is one of this training, and save the adapter (rank 0's) under `output`.

    Raises Interrupted after a checkpoint was saved, NumericalError when a loss or gradient is not finite, DependencyError when another
    worker is gone.
    """
    model: PeftModel = trainer.model
    fold_small_adapters(model)
    optimizer = build_optimizer(model.parameters(), settings)
    schedule = build_schedule(optimizer, settings, len(trainer.plan))
    progress = _Progress(
        trainer,
        settings,
        hooks,
        lambda folder: write_checkpoint(folder, model, optimizer, schedule, log=trainer.training_log, identity=identity),
    )
    if hooks.resume_from is not None:
        found = read_checkpoint(hooks.resume_from, model, optimizer, schedule, identity)
        if found is not None:
            trainer.training_log, progress.random_state = found
        elif hooks.workers.rank == 0:
            hooks.discard_checkpoints()
    hooks.workers.require_same("where to begin", (identity, trainer.training_log.updates))
    trainer.optimizer, trainer.lr_scheduler = optimizer, schedule
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.args.max_steps = len(trainer.plan) - trainer.training_log.updates
    trainer.train()
    if hooks.workers.rank == 0:
        save_adapter(model, output)
    log: TrainingLog = trainer.training_log
    return log


def check_fits(model: Any, rows: Sequence[TokenSequence | StepPair]) -> None:
    """Raise InputError for what the caller should have dropped: an empty training set, or rows beyond the model's context."""
    if not rows:
        raise InputError("there is nothing to train on", remedy="Check the dropped examples of the stages before")
    limit = model.config.max_position_embeddings
    longest = max(rows, key=lambda row: row.context_tokens)
    if longest.context_tokens > limit:
        what = f"example {longest.example_id!r} has {longest.context_tokens} tokens, the base model reads {limit}"
        raise InputError(what, remedy="Lower model.context_tokens")


def fingerprint(*parts: Any) -> str:
    """Identity of data and settings, for checkpoints: without `checkpoint_seconds`, how often these are written."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
