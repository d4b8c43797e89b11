"""Dpo: train the next adapter. Reads pairs (for the controls: responses) and the adapter before it, writes the next. Eq. (10)-(11)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.logs import get_logger
from itool.records import AcceptedSample, Example, PreferencePair
from jobs.training import save_training, token_sequences, training_hooks

if TYPE_CHECKING:
    from itool.train.sequences import TokenSequence

_log = get_logger(__name__)


def dpo(stage: Stage) -> None:
    """Preferences over steps for the searching methods, as many updates of SFT for the controls; warm-up examples are replayed in both."""
    model_dir, adapter = stage.path("data", "model/"), stage.path("adapter", "adapter/")
    tokenizer = load_tokenizer(model_dir)
    replay = token_sequences(tokenizer, stage.read(Example, "data", "warmup.jsonl")) if stage.config.dpo.replay_fraction else []
    if stage.config.method in ("sft_continued", "rejection_sampling"):
        _continue_sft(stage, model_dir, adapter, tokenizer, replay)
    else:
        _prefer(stage, model_dir, adapter, replay)


def _prefer(stage: Stage, model_dir: Path, adapter: Path, replay: Sequence[TokenSequence]) -> None:
    from itool.train.preference import train_preferences  # noqa: PLC0415 - imports torch

    pairs = stage.read(PreferencePair, "pairs", "pairs.jsonl")
    stage.working()
    stage.count(incoming=len(pairs), kept=len(pairs))
    if not pairs:
        _keep_adapter(stage, adapter)
        return
    log = train_preferences(
        model_dir,
        pairs,
        replay,
        adapter_in=adapter,
        reference=stage.path("reference", "adapter/") if stage.has("reference") else None,
        model=stage.config.model,
        settings=stage.config.dpo,
        seed=stage.seed,
        output=stage.output / "adapter",
        hooks=training_hooks(stage),
    )
    save_training(stage, log)


def _continue_sft(stage: Stage, model_dir: Path, adapter: Path, tokenizer: Any, replay: Sequence[TokenSequence]) -> None:
    from itool.train.sft import continue_sft  # noqa: PLC0415 - imports torch

    sequences = _accepted(stage) if stage.has("pairs") else token_sequences(tokenizer, stage.read(Example, "data", "buffer.jsonl"))
    stage.working()
    stage.count(incoming=len(sequences), kept=len(sequences))
    if not sequences:
        _keep_adapter(stage, adapter)
        return
    log = continue_sft(
        model_dir,
        sequences,
        replay,
        adapter_in=adapter,
        model=stage.config.model,
        settings=stage.config.dpo,
        seed=stage.seed,
        output=stage.output / "adapter",
        hooks=training_hooks(stage),
    )
    save_training(stage, log)


def _accepted(stage: Stage) -> list[TokenSequence]:
    """Every distinct right sample as a training sequence: what rejection sampling learns from."""
    from itool.train.sequences import TokenSequence  # noqa: PLC0415 - imports torch

    samples = stage.read(AcceptedSample, "pairs", "samples.jsonl")
    return [TokenSequence(sample.prompt_ids, sample.response_ids, sample.example_id) for sample in samples]


def _keep_adapter(stage: Stage, adapter: Path) -> None:
    """Nothing to train on: the search found no deficiency. The policy stays as it is, and the manifest says 0 updates."""
    _log.warning("nothing to train on", stage=str(stage.id), adapter="unchanged")
    shutil.copytree(adapter, stage.output / "adapter")
    stage.write("training.jsonl", [])
    stage.metrics({"updates": 0})


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("dpo", dpo, argv)


if __name__ == "__main__":
    sys.exit(main())
