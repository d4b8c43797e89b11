"""Score: which buffer examples are hard for the policy? Reads buffer and adapter, writes scores, the hard ones marked. Eq. (4).

Both ways measure whole batches or blocks, cut the same way by every attempt, and save those that are done.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from itool.artifacts.inputs import read_records, write_records
from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.data.selection import Quotas, hardest, next_to_score, quotas_of
from itool.evaluate.held_out import OnProgress, examples_in_flight, ground_truth_perplexities, pass_counts
from itool.policy.protocol import Policy
from itool.records import Example, Score
from jobs.checkpoints import saving
from jobs.policy import measure_blocks, model_folder, open_stage_policy
from jobs.training import token_sequences

SCORES = "scores.jsonl"
BLOCK_ROUNDS = 8
"""A block holds so many times the examples that are sampled at a time: each ends with a batch that runs empty, and a stop loses one."""


def score(stage: Stage) -> None:
    """By perplexity of the ground truth (the paper), or by how rarely a sample is right.

    Where a pass rate decides, the perplexity is measured beside it, for the report, if the model is at hand and the ground truth is known.
    """
    select = stage.config.select
    examples = stage.read(Example, "data", "buffer.jsonl")
    quotas = quotas_of(examples, select.alpha)
    scores = asyncio.run(_pass_rates(stage, examples, quotas)) if select.by == "pass_rate" else _perplexities(stage, examples)
    scores = hardest(scores, quotas, seed=stage.seed)
    stage.write(SCORES, scores)
    stage.count(incoming=len(scores), kept=len(scores))
    stage.metrics({"selected": sum(score.selected for score in scores), "left_out": len(examples) - len(scores)})


def _perplexities(stage: Stage, examples: Sequence[Example]) -> list[Score]:
    from itool.train.model import load_policy  # noqa: PLC0415 - imports torch
    from itool.train.perplexity import perplexities  # noqa: PLC0415

    model_dir = stage.path("data", "model/")
    policy = load_policy(model_dir, stage.path("adapter", "adapter/"), dtype=stage.config.model.dtype)
    stage.working()
    sequences = token_sequences(load_tokenizer(model_dir), examples)
    known = {score.example_id: score.perplexity for score in _resume(stage)}
    found = {place: value for place, example in enumerate(examples) if (value := known.get(example.id)) is not None}

    def scores() -> list[Score]:
        return [Score(example_id=e.id, stratum=e.stratum, perplexity=found[place]) for place, e in enumerate(examples) if place in found]

    with saving(stage, lambda folder: write_records(folder / SCORES, scores()), lambda: len(found)) as reached:

        def show(done: int, total: int) -> None:
            stage.progress(done, total, "examples")
            if done < total:
                reached()
                stage.raise_if_stopped()

        perplexities(policy, sequences, batch_tokens=stage.config.select.batch_tokens, found=found, on_progress=show)
    stage.tokens(sum(map(len, sequences)))
    return scores()


async def _pass_rates(stage: Stage, examples: Sequence[Example], quotas: Quotas) -> list[Score]:
    """The pass rates of as many examples as it takes to know the hardest, in the order of `examples`.

    What an earlier attempt has measured is not measured again; the decisions what to measure next repeat.
    """
    config, tokenizer = stage.config, load_tokenizer(model_folder(stage))
    size = BLOCK_ROUNDS * examples_in_flight(config, config.select.samples)
    known = {score.example_id: score for score in _resume(stage)}
    scores: list[Score] = []
    async with open_stage_policy(stage) as policy:
        stage.working()
        ask = partial(_measure, stage, policy, tokenizer)
        with saving(stage, lambda folder: write_records(folder / SCORES, known.values()), lambda: len(known)) as reached:
            while wanted := next_to_score(examples, scores, quotas, seed=stage.seed):
                blocks = (wanted[start : start + size] for start in range(0, len(wanted), size))
                await measure_blocks(stage, policy, blocks, known, ask, reached=reached, total=len(scores) + len(wanted))
                scores += [known[example.id] for example in wanted]
    return [known[example.id] for example in examples if example.id in known]


async def _measure(stage: Stage, policy: Policy, tokenizer: Any, block: Sequence[Example], show: OnProgress) -> list[Score]:
    """The scores of one block."""
    config = stage.config
    counts = await pass_counts(policy, tokenizer, block, config, samples=config.select.samples, seed=stage.seed, on_progress=show)
    scores = [
        Score(example_id=e.id, stratum=e.stratum, pass_rate=count.correct / count.samples, sampled_tokens=count.tokens)
        for e, count in zip(block, counts, strict=True)
    ]
    if config.policy.backend == "embedded" and config.data.buffer_labels == "response":
        # the policy has just read the prompts and knows most of them still
        found = await ground_truth_perplexities(policy, tokenizer, block, on_progress=lambda *_: stage.raise_if_stopped())
        scores = [score.model_copy(update={"perplexity": one.perplexity}) for score, one in zip(scores, found, strict=True)]
        stage.tokens(sum(one.response_tokens for one in found))
    stage.tokens(sum(score.sampled_tokens for score in scores))
    return scores


def _resume(stage: Stage) -> list[Score]:
    """What an earlier attempt has measured."""
    folder = stage.latest_checkpoint()
    return read_records(folder / SCORES, Score) if folder else []


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("score", score, argv)


if __name__ == "__main__":
    sys.exit(main())
