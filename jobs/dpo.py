"""Dpo: train the next adapter. Reads pairs (for the controls: responses) and the adapter before it, writes the next. Eq. (10)-(11)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from itool.artifacts.stage import Stage
from itool.data.chat import load_tokenizer
from itool.logs import get_logger
from itool.names import SFT_CONTROLS
from itool.records import AcceptedSample, Example, PreferencePair
from jobs.training import run_training, save_training, token_sequences, training_hooks

if TYPE_CHECKING:
    from itool.train.sequences import TokenSequence

Found = TypeVar("Found", PreferencePair, AcceptedSample)

_log = get_logger(__name__)


def dpo(stage: Stage) -> None:
    """Preferences over steps for the searching methods, as many updates of SFT for the controls; warm-up examples are replayed in both."""
    from itool.train.preference import train_preferences  # noqa: PLC0415 - imports torch
    from itool.train.sft import continue_sft  # noqa: PLC0415 - imports torch

    model_dir, adapter = stage.path("data", "model/"), stage.path("adapter", "adapter/")
    tokenizer = load_tokenizer(model_dir)
    control = stage.config.method in SFT_CONTROLS
    replay = token_sequences(tokenizer, replayed_examples(stage))
    rows = _responses(stage, tokenizer) if control else _in_buffer_order(stage, stage.read(PreferencePair, "pairs", "pairs.jsonl"))
    hooks = training_hooks(stage)
    stage.count(incoming=len(rows), kept=len(rows))
    if not rows:
        _keep_adapter(stage, adapter)
        return
    reference = stage.path("reference", "adapter/") if stage.has("reference") else None
    train: Any = continue_sft if control else partial(train_preferences, reference=reference)
    log = train(
        model_dir,
        rows,
        replay,
        adapter_in=adapter,
        model=stage.config.model,
        settings=stage.config.dpo,
        seed=stage.seed,
        output=stage.output / "adapter",
        hooks=hooks,
    )
    save_training(stage, log)


def replayed_examples(stage: Stage) -> list[Example]:
    """Warm-up examples, and beside pairs, where it is configured, the buffer's: the SFT controls learn from the buffer already."""
    settings = stage.config.dpo
    if not settings.replay_fraction:
        return []
    warmup = stage.read(Example, "data", "warmup.jsonl")
    if settings.replay_from == "warmup" or stage.config.method in SFT_CONTROLS:
        return warmup
    return [*warmup, *(example for example in stage.read(Example, "data", "buffer.jsonl") if example.response is not None)]


def _responses(stage: Stage, tokenizer: Any) -> list[TokenSequence]:
    """What the controls learn from: every distinct right sample (rejection sampling), or the buffer's ground truth (continued SFT)."""
    from itool.train.sequences import TokenSequence  # noqa: PLC0415 - imports torch

    if not stage.has("pairs"):
        return token_sequences(tokenizer, stage.read(Example, "data", "buffer.jsonl"))
    samples = _in_buffer_order(stage, stage.read(AcceptedSample, "pairs", "samples.jsonl"))
    return [TokenSequence(sample.prompt_ids, sample.response_ids, sample.example_id) for sample in samples]


def _in_buffer_order(stage: Stage, found: Sequence[Found]) -> list[Found]:
    """What the search found, as one shard would have written it: the adapter must not depend on how many there were."""
    places = {example.id: place for place, example in enumerate(stage.read(Example, "data", "buffer.jsonl"))}
    return sorted(found, key=lambda row: places[row.example_id])


def _keep_adapter(stage: Stage, adapter: Path) -> None:
    """Nothing to train on: the search found no deficiency. The policy stays as it is, and the manifest says 0 updates."""
    stage.working()
    _log.warning("nothing to train on", stage=str(stage.id), adapter="unchanged")
    shutil.copytree(adapter, stage.output / "adapter")
    stage.write("training.jsonl", [])
    stage.metrics({"updates": 0})


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_training("dpo", dpo, argv)


if __name__ == "__main__":
    sys.exit(main())
