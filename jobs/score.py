"""Score: which buffer examples are hard for the policy? Reads buffer and adapter, writes scores, the hard ones marked. Eq. (4)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.data.selection import hardest
from itool.evaluate.held_out import pass_counts
from itool.records import Example, Score
from jobs.policy import model_folder, open_stage_policy
from jobs.training import token_sequences


def score(stage: Stage) -> None:
    """By perplexity of the ground truth (the paper), or by how rarely a sample is right.

    Where a pass rate decides, the perplexity is measured beside it, for the report, if the model is at hand and the ground truth is known.
    """
    examples = stage.read(Example, "data", "buffer.jsonl")
    by_pass_rate = stage.config.select.by == "pass_rate"
    scores = asyncio.run(_pass_rates(stage, examples)) if by_pass_rate else _perplexities(stage, examples)
    scores = hardest(scores, fraction=stage.config.select.alpha, seed=stage.seed)
    if by_pass_rate and stage.config.policy.backend == "embedded" and stage.config.data.buffer_labels == "response":
        told = {"perplexity", "response_tokens"}
        measured = _perplexities(stage, examples)
        scores = [score.model_copy(update=beside.model_dump(include=told)) for score, beside in zip(scores, measured, strict=True)]
    stage.write("scores.jsonl", scores)
    stage.count(incoming=len(examples), kept=len(examples))
    stage.metrics({"selected": sum(score.selected for score in scores)})


def _perplexities(stage: Stage, examples: Sequence[Example]) -> list[Score]:
    from itool.train.model import load_policy  # noqa: PLC0415 - imports torch
    from itool.train.perplexity import perplexities  # noqa: PLC0415

    model_dir = stage.path("data", "model/")
    policy = load_policy(model_dir, stage.path("adapter", "adapter/"), dtype=stage.config.model.dtype)
    sequences = token_sequences(load_tokenizer(model_dir), examples)
    stage.working()
    values = perplexities(
        policy,
        sequences,
        batch_tokens=stage.config.select.batch_tokens,
        on_progress=lambda done, total: stage.progress(done, total, "examples"),
    )
    stage.tokens(sum(map(len, sequences)))
    return [
        Score(example_id=example.id, stratum=example.stratum, perplexity=value, response_tokens=len(sequence.response_ids))
        for example, sequence, value in zip(examples, sequences, values, strict=True)
    ]


async def _pass_rates(stage: Stage, examples: Sequence[Example]) -> list[Score]:
    config, tokenizer = stage.config, load_tokenizer(model_folder(stage))
    async with open_stage_policy(stage) as policy:
        stage.working()
        counts = await pass_counts(
            policy,
            tokenizer,
            examples,
            config,
            samples=config.select.samples,
            seed=stage.seed,
            on_progress=lambda done, total: stage.progress(done, total, "examples"),
        )
    stage.tokens(sum(count.tokens for count in counts))
    return [
        Score(example_id=example.id, stratum=example.stratum, pass_rate=count.correct / count.samples)
        for example, count in zip(examples, counts, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("score", score, argv)


if __name__ == "__main__":
    sys.exit(main())
