"""How does a policy answer examples that it was not trained on? Greedy predictions, samples for pass@k, perplexity of the ground truth.

The verdict is `itool.data.judge`'s, the same that the search rewards.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from itool.config import RunConfig
from itool.data.chat import render_prompt, response_ids
from itool.data.judge import judge
from itool.data.selection import perplexity
from itool.policy.protocol import Policy, Sample
from itool.records import Example, ExamplePerplexity, PassCount, Prediction

T = TypeVar("T")
OnProgress = Callable[[int, int], None]

PERPLEXITIES_AT_ONCE = 16
"""Ground truths that are asked for together: with the embedded policy each brings a row of logits per token."""


@dataclass(frozen=True)
class _Task:
    """An example, ready to be sampled."""

    example: Example
    prompt_ids: list[int]


def examples_in_flight(config: RunConfig, samples: int = 1) -> int:
    """Of how many examples so many samples each are asked for at a time."""
    return max(1, config.evaluate.batch_sequences // samples)


def cut_blocks(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """The examples in blocks of similar length, longest first: what is measured together, and what an interrupted evaluation repeats."""
    longest_first = sorted(examples, key=lambda example: -len(example.model_dump_json(include={"messages", "tools"})))
    return [longest_first[start : start + size] for start in range(0, len(examples), size)]


async def predict(
    policy: Policy, tokenizer: Any, examples: Sequence[Example], config: RunConfig, *, on_progress: OnProgress | None = None
) -> list[Prediction]:
    """The greedy response to every example and its verdict, in the order of the examples.

    `evaluate.batch_sequences` are asked for at a time, longest prompts first. Each prompt leaves room for the longest response, as
    `prepare` sees to it. Raises DependencyError when the engine is gone.
    """
    max_tokens = config.model.max_response_tokens

    async def answer(task: _Task) -> Prediction:
        (sample,) = await policy.sample(task.prompt_ids, count=1, max_tokens=max_tokens, temperature=0.0, seed=0)
        return _judge(task.example, sample, tokenizer)

    return await _run_all(_prepare(tokenizer, examples), answer, examples_in_flight(config), on_progress)


async def pass_counts(
    policy: Policy,
    tokenizer: Any,
    examples: Sequence[Example],
    config: RunConfig,
    *,
    samples: int,
    seed: int,
    on_progress: OnProgress | None = None,
) -> list[PassCount]:
    """How many of `samples` draws at `search.temperature` are right, per example, in their order. For pass@k and selection by pass rate.

    Draws depend on the seed and the example's id, not on which other examples are asked for.
    """

    async def draw(task: _Task) -> PassCount:
        drawn = await policy.sample(
            task.prompt_ids,
            count=samples,
            max_tokens=config.model.max_response_tokens,
            temperature=config.search.temperature,
            seed=_seed_of(seed, task.example.id),
        )
        correct = sum(_judge(task.example, sample, tokenizer).correct for sample in drawn)
        tokens = sum(len(sample.token_ids) for sample in drawn)
        return PassCount(example_id=task.example.id, samples=samples, correct=correct, tokens=tokens)

    return await _run_all(_prepare(tokenizer, examples), draw, examples_in_flight(config, samples), on_progress)


async def ground_truth_perplexities(
    policy: Policy, tokenizer: Any, examples: Sequence[Example], *, on_progress: OnProgress | None = None
) -> list[ExamplePerplexity]:
    """The perplexity of every example's ground-truth response, Eq. (4), in the order of the examples. All must have a response."""

    async def measure(task: _Task) -> ExamplePerplexity:
        ids = response_ids(tokenizer, task.example)
        found = perplexity(await policy.logprobs(task.prompt_ids, ids))
        return ExamplePerplexity(example_id=task.example.id, perplexity=found, response_tokens=len(ids))

    return await _run_all(_prepare(tokenizer, examples), measure, PERPLEXITIES_AT_ONCE, on_progress)


def _prepare(tokenizer: Any, examples: Sequence[Example]) -> list[_Task]:
    return [_Task(example, render_prompt(tokenizer, example)) for example in examples]


def _judge(example: Example, sample: Sample, tokenizer: Any) -> Prediction:
    text: str = tokenizer.decode(list(sample.token_ids), skip_special_tokens=True)
    verdict = judge(text, sample.finished, example)
    return Prediction(
        example_id=example.id,
        text=text,
        calls=verdict.calls,
        correct=verdict.correct,
        error=verdict.error,
        difficulty=example.difficulty,
        stratum=example.stratum,
        response_tokens=len(sample.token_ids),
        truncated=not sample.finished,
    )


def _seed_of(seed: int, example_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"pass:{seed}:{example_id}".encode()).digest()[:8]) >> 1


async def _run_all(
    tasks: Sequence[_Task], work: Callable[[_Task], Awaitable[T]], in_flight: int, on_progress: OnProgress | None
) -> list[T]:
    """The result of every task, in order, `in_flight` of them at a time: one that ends makes room for the next at once.

    Those of similar length run together. The first fault cancels all others and is raised.
    """
    waiting = iter(sorted(range(len(tasks)), key=lambda index: -len(tasks[index].prompt_ids)))
    results: dict[int, T] = {}

    async def run_one_after_another() -> None:
        for index in waiting:
            results[index] = await work(tasks[index])
            if on_progress is not None:
                on_progress(len(results), len(tasks))

    running = [asyncio.ensure_future(run_one_after_another()) for _ in range(min(in_flight, len(tasks)))]
    try:
        await asyncio.gather(*running)
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return [results[index] for index in range(len(tasks))]
