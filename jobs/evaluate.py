"""Evaluate: how good is an adapter? Reads held-out and validation sets, writes predictions, accuracy, pass@k, perplexities."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from itool.artifacts.inputs import read_records, write_records
from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.data.sources.load import pick
from itool.evaluate.figures import evaluation_report, summarise_perplexities
from itool.evaluate.held_out import (
    PERPLEXITIES_AT_ONCE,
    OnProgress,
    cut_blocks,
    examples_in_flight,
    ground_truth_perplexities,
    pass_counts,
    predict,
)
from itool.policy.protocol import Policy
from itool.records import Example, ExamplePerplexity, PassCount, Prediction, Record
from jobs.checkpoints import saving
from jobs.policy import Ask, Measured, measure_blocks, model_folder, open_stage_policy

PARTS: dict[str, type[Record]] = {
    "held_out": Prediction,
    "validation": Prediction,
    "pass_counts": PassCount,
    "perplexities": ExamplePerplexity,
}
"""What is measured, in this order, one record per example."""

BLOCK_ROUNDS = 2
"""A block holds so many times the examples that are asked for at a time: each ends with a batch that runs empty, and a stop loses one."""

MOST_PERPLEXITIES = 200
"""Validation examples whose ground truth is scored: enough for a histogram, and a small part of the stage's time."""

OF_THE_REPORT = {"iteration", "dataset", "verdicts"}
"""What metrics.json need not repeat: its artifact is of one iteration, and the predictions lie beside it."""

Found = dict[str, dict[str, Any]]


def evaluate(stage: Stage) -> None:
    """The held-out set is what the report shows; the validation set decides which iteration is kept."""
    asyncio.run(_evaluate(stage))


async def _evaluate(stage: Stage) -> None:
    config, tokenizer = stage.config, load_tokenizer(model_folder(stage))
    sets = {name: stage.read(Example, "data", f"{name}.jsonl") for name in ("held_out", "validation")}
    sampled = pick(sets["held_out"], config.evaluate.pass_examples)  # by hash, as a file may be sorted; the same in every iteration
    scored = pick([example for example in sets["validation"] if example.response is not None], MOST_PERPLEXITIES)
    total = sum(map(len, sets.values()))
    predictions: dict[str, list[Prediction]] = {}
    async with open_stage_policy(stage) as policy:
        stage.working()
        found = _resume(stage.latest_checkpoint())
        with saving(stage, lambda folder: _write(folder, found), lambda: _count(found)) as reached:
            measuring = _Measuring(stage, policy, tokenizer, found, reached, total=total + len(sampled) + len(scored))
            for name, examples in sets.items():
                predictions[name] = await measuring.predictions(name, examples)
                stage.write(f"{name}.jsonl", predictions[name])
            counts = {"held_out": await measuring.pass_counts(sampled)}
            perplexities = await measuring.perplexities(scored)
    stage.write("pass_counts.jsonl", counts["held_out"])
    stage.write("perplexities.jsonl", perplexities)
    reports = {
        name: evaluation_report(stage.id.iteration, name, some, counts.get(name, []), config.evaluate.pass_k)
        for name, some in predictions.items()
        if some
    }
    figures: dict[str, Any] = {name: one.model_dump(mode="json", exclude=OF_THE_REPORT) for name, one in reports.items()}
    stage.write_json("metrics.json", figures | {"perplexity": summarise_perplexities(perplexities)})
    stage.count(incoming=total, kept=total)
    stage.metrics({name: one.exact_match for name, one in reports.items()})


class _Measuring:
    """Measures into `found`, records by part and example. Blocks are cut from all examples, whatever an earlier attempt has measured."""

    def __init__(self, stage: Stage, policy: Policy, tokenizer: Any, found: Found, reached: Callable[[], None], *, total: int) -> None:
        self._stage, self._policy, self._tokenizer = stage, policy, tokenizer
        self._found, self._reached, self._total = found, reached, total

    async def predictions(self, part: str, examples: Sequence[Example]) -> list[Prediction]:
        """The greedy response to every example."""
        config = self._stage.config

        async def ask(block: Sequence[Example], show: OnProgress) -> list[Prediction]:
            predictions = await predict(self._policy, self._tokenizer, block, config, on_progress=show)
            self._stage.tokens(sum(prediction.response_tokens for prediction in predictions))
            return predictions

        return await self._measure(part, examples, BLOCK_ROUNDS * examples_in_flight(config), ask)

    async def pass_counts(self, examples: Sequence[Example]) -> list[PassCount]:
        """How many of an example's samples are right. Their seed is the run's: the same draws in every iteration by another policy."""
        config = self._stage.config
        samples = max(config.evaluate.pass_k, default=1)

        async def ask(block: Sequence[Example], show: OnProgress) -> list[PassCount]:
            counts = await pass_counts(self._policy, self._tokenizer, block, config, samples=samples, seed=config.seed, on_progress=show)
            self._stage.tokens(sum(count.tokens for count in counts))
            return counts

        return await self._measure("pass_counts", examples, BLOCK_ROUNDS * examples_in_flight(config, samples), ask)

    async def perplexities(self, examples: Sequence[Example]) -> list[ExamplePerplexity]:
        """How well the policy foresees the ground truth: the same examples in every iteration, the warm-up's and the last one's too."""

        async def ask(block: Sequence[Example], show: OnProgress) -> list[ExamplePerplexity]:
            found = await ground_truth_perplexities(self._policy, self._tokenizer, block, on_progress=show)
            self._stage.tokens(sum(one.response_tokens for one in found))
            return found

        return await self._measure("perplexities", examples, PERPLEXITIES_AT_ONCE, ask)

    async def _measure(self, part: str, examples: Sequence[Example], size: int, ask: Ask[Measured]) -> list[Measured]:
        """One record per example, in their order. Raises Interrupted when the stage is to stop and something is left to do."""
        found = self._found[part]
        blocks, before = cut_blocks(examples, size), _count(self._found) - len(found)
        await measure_blocks(self._stage, self._policy, blocks, found, ask, reached=self._reached, total=self._total, before=before)
        return [found[example.id] for example in examples]


def _count(found: Found) -> int:
    return sum(map(len, found.values()))


def _write(folder: Path, found: Found) -> None:
    for part, records in found.items():
        write_records(folder / f"{part}.jsonl", records.values())


def _resume(folder: Path | None) -> Found:
    """What an earlier attempt measured: its records by part and example."""
    if folder is None:
        return {part: {} for part in PARTS}
    records: dict[str, list[Any]] = {part: read_records(folder / f"{part}.jsonl", kind) for part, kind in PARTS.items()}
    return {part: {record.example_id: record for record in some} for part, some in records.items()}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("evaluate", evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
