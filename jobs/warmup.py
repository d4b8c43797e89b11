"""Warm-up: SFT on easy, then medium, then hard examples. Reads the warm-up set and the base model, writes adapter 0. Eq. (2)-(3)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from itool.artifacts.stage import Stage
from itool.data.chat import load_tokenizer
from itool.records import DIFFICULTIES, Example
from jobs.training import run_training, save_training, token_sequences, training_hooks

if TYPE_CHECKING:
    from itool.train.sequences import TokenSequence


def warmup(stage: Stage) -> None:
    """One phase per difficulty; `curriculum: mixed` shuffles them into one."""
    from itool.train.sft import train_sft  # noqa: PLC0415 - imports torch

    model_dir = stage.path("data", "model/")
    examples = stage.read(Example, "data", "warmup.jsonl")
    tokenizer = load_tokenizer(model_dir)
    phases: dict[str, list[TokenSequence]] = {
        phase: token_sequences(tokenizer, [e for e in examples if e.difficulty == phase]) for phase in DIFFICULTIES
    }
    log = train_sft(
        model_dir,
        phases,
        model=stage.config.model,
        settings=stage.config.warmup,
        seed=stage.seed,
        output=stage.output / "adapter",
        hooks=training_hooks(stage),
    )
    stage.count(incoming=len(examples), kept=len(examples))
    save_training(stage, log)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_training("warmup", warmup, argv)


if __name__ == "__main__":
    sys.exit(main())
