"""Score: which buffer examples are hard for the policy? Reads buffer and adapter, writes scores, the hard ones marked. Eq. (4)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.data.selection import Quotas, hardest, next_to_score, quotas_of
from itool.evaluate.held_out import pass_counts
from itool.policy.protocol import Policy
from itool.records import Example, Score
from jobs.policy import model_folder, open_stage_policy
from jobs.training import token_sequences

if TYPE_CHECKING:
    from itool.train.sequences import TokenSequence

PERPLEXITIES_AT_ONCE = 64
"""Ground truths that are asked for together: each brings a row of logits per token until it is read."""


def score(stage: Stage) -> None:
    """By perplexity of the ground truth (the paper), or by how rarely a sample is right.

    Where a pass rate decides, the perplexity is measured beside it, for the report, if the model is at hand and the ground truth is known.
    """
    select = stage.config.select
    examples = stage.read(Example, "data", "buffer.jsonl")
    quotas = quotas_of(examples, select.alpha)
    scores = asyncio.run(_pass_rates(stage, examples, quotas)) if select.by == "pass_rate" else _perplexities(stage, examples)
    scores = hardest(scores, quotas, seed=stage.seed)
    stage.write("scores.jsonl", scores)
    stage.count(incoming=len(scores), kept=len(scores))
    stage.metrics({"selected": sum(score.selected for score in scores), "left_out": len(examples) - len(scores)})


def _perplexities(stage: Stage, examples: Sequence[Example]) -> list[Score]:
    from itool.train.model import load_policy  # noqa: PLC0415 - imports torch
    from itool.train.perplexity import perplexities  # noqa: PLC0415

    model_dir = stage.path("data", "model/")
    policy = load_policy(model_dir, stage.path("adapter", "adapter/"), dtype=stage.config.model.dtype)
    stage.working()
    sequences = token_sequences(load_tokenizer(model_dir), examples)

    def show(done: int, total: int) -> None:
        stage.raise_if_stopped()
        stage.progress(done, total, "examples")

    values = perplexities(policy, sequences, batch_tokens=stage.config.select.batch_tokens, on_progress=show)
    stage.tokens(sum(map(len, sequences)))
    return [
        Score(example_id=example.id, stratum=example.stratum, perplexity=value, response_tokens=len(sequence.response_ids))
        for example, sequence, value in zip(examples, sequences, values, strict=True)
    ]


async def _pass_rates(stage: Stage, examples: Sequence[Example], quotas: Quotas) -> list[Score]:
    """The pass rates of as many examples as it takes to know the hardest, in the order of `examples`."""
    config, tokenizer = stage.config, load_tokenizer(model_folder(stage))
    scores: list[Score] = []
    async with open_stage_policy(stage) as policy:
        stage.working()
        while wanted := next_to_score(examples, scores, quotas, seed=stage.seed):
            before = len(scores)

            def show(done: int, total: int, before: int = before) -> None:
                stage.raise_if_stopped()
                stage.progress(before + done, before + total, "examples")

            counts = await pass_counts(policy, tokenizer, wanted, config, samples=config.select.samples, seed=stage.seed, on_progress=show)
            stage.tokens(sum(count.tokens for count in counts))
            rates = (count.correct / count.samples for count in counts)
            scores += [Score(example_id=e.id, stratum=e.stratum, pass_rate=rate) for e, rate in zip(wanted, rates, strict=True)]
        measured = {score.example_id: score for score in scores}
        examples = [example for example in examples if example.id in measured]
        scores = [measured[example.id] for example in examples]
        if config.policy.backend == "embedded" and config.data.buffer_labels == "response":
            return await _with_perplexities(stage, policy, scores, token_sequences(tokenizer, examples))
    return scores


async def _with_perplexities(stage: Stage, policy: Policy, scores: Sequence[Score], sequences: Sequence[TokenSequence]) -> list[Score]:
    """Add the perplexity of each ground truth: the policy has just read the prompts and knows most of them still."""
    from itool.train.losses import perplexity  # noqa: PLC0415 - imports torch

    values: list[float] = []
    for start in range(0, len(sequences), PERPLEXITIES_AT_ONCE):
        stage.raise_if_stopped()
        some = sequences[start : start + PERPLEXITIES_AT_ONCE]
        values += map(perplexity, await asyncio.gather(*(policy.logprobs(s.prompt_ids, s.response_ids) for s in some)))
    stage.tokens(sum(len(sequence.response_ids) for sequence in sequences))
    return [
        score.model_copy(update={"perplexity": value, "response_tokens": len(sequence.response_ids)})
        for score, value, sequence in zip(scores, values, sequences, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("score", score, argv)


if __name__ == "__main__":
    sys.exit(main())
