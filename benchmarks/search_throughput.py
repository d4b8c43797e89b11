"""Tree code alone: simulations/s and sampled tokens/s with a policy that costs next to nothing. It must never limit an engine.

    python -m benchmarks.search_throughput [--trees 200] [--tokenizer FOLDER]

The policy draws from tokenised variants of the ground truth (right, one argument wrong, another order, prose), prepared before the clock
starts; what is measured, in CPU seconds of the one thread, is selection, splitting, scoring, backup and the stored tree.
"""

# ruff: noqa: ARG002 - a fake policy keeps the protocol's parameter names
from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from transformers import AutoTokenizer

from itool.config import RunConfig, parse_config
from itool.data.chat import render_prompt
from itool.policy.protocol import Sample
from itool.records import Example, Message, Tool, ToolCall
from itool.search.generate import pairs_of, search_examples
from tests.fakes.byte_tokenizer import byte_tokenizer

TARGET_TOKENS_PER_SECOND = 50_000
CITIES = ("Oslo", "Rome", "Paris", "Quito", "Lima")


def make_example(number: int) -> Example:
    """Two calls with three and two arguments."""
    city = CITIES[number % len(CITIES)]
    calls = [
        ToolCall(name="book_table", arguments={"city": city, "people": number % 7 + 1, "day": "next Friday"}),
        ToolCall(name="get_weather", arguments={"city": city, "unit": "celsius"}),
    ]
    return Example(
        id=f"example-{number}",
        messages=[Message(role="user", content=f"A table for {number % 7 + 1} in {city} next Friday, and the weather there?")],
        tools=[Tool(name="book_table"), Tool(name="get_weather")],
        calls=calls,
        response=answer(city, number % 7 + 1),
    )


def answer(city: str, people: int, unit: str = "celsius", day: str = "next Friday") -> str:
    return f'[book_table(city="{city}",people={people},day="{day}"),get_weather(city="{city}",unit="{unit}")]'


def variants(example: Example) -> list[str]:
    """What the policy answers to an example: mostly right, with single slips anywhere."""
    city, people = example.calls[0].arguments["city"], example.calls[0].arguments["people"]
    slips = [answer(other, people) for other in CITIES if other != city] + [answer(city, people + 1), answer(city, people, unit="kelvin")]
    return [*[answer(city, people)] * 6, *slips, answer(city, people, day="Friday"), "I cannot do that. Please ask someone else."]


class InstantPolicy:
    """Looks its samples up. A state that no prepared answer continues gets the tail of the right one."""

    def __init__(self, tokenizer: Any, examples: Sequence[Example], prompts: dict[tuple[int, ...], Example]) -> None:
        self._prompts = prompts
        self._answers = {
            example.id: [(*tokenizer.encode(text), tokenizer.eos_token_id) for text in variants(example)] for example in examples
        }

    async def sample(self, prompt_ids: Sequence[int], *, count: int, max_tokens: int, temperature: float, seed: int) -> list[Sample]:
        await asyncio.sleep(0)
        ids = tuple(prompt_ids)
        prompt = next(ids[:length] for length in range(len(ids), 0, -1) if ids[:length] in self._prompts)
        state = ids[len(prompt) :]
        answers = self._answers[self._prompts[prompt].id]
        fitting = [ids[len(state) :] for ids in answers if ids[: len(state)] == state] or [answers[0][-8:]]
        draw = random.Random(seed)
        chosen = [draw.choice(fitting)[:max_tokens] for _ in range(count)]
        return [Sample(ids, (-0.1,) * len(ids), finished=True) for ids in chosen]

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return [-0.1] * len(continuation_ids)

    async def option_probabilities(self, prompt_ids: Sequence[int], option_ids: Sequence[int]) -> list[float]:
        return [0.5, 0.5]

    def forget(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


async def measure(config: RunConfig, tokenizer: Any, examples: Sequence[Example]) -> None:
    policy = InstantPolicy(tokenizer, examples, {tuple(render_prompt(tokenizer, example)): example for example in examples})
    started = time.process_time()
    trees = []
    async for block in search_examples(policy, tokenizer, examples, config, iteration=1):
        trees += block.trees
    seconds = time.process_time() - started
    pairs = sum(len(pairs_of(tree, config)[0]) for tree in trees)
    tokens = sum(tree.sampled_tokens for tree in trees)
    simulations = sum(tree.simulations for tree in trees)
    stopped = {reason: sum(tree.stopped == reason for tree in trees) for reason in sorted({tree.stopped for tree in trees})}
    print(f"{config.method} {config.search.granularity}: {len(trees)} trees, {pairs} pairs, stopped {stopped}")
    print(f"  {simulations / seconds:10,.0f} simulations/s")
    print(f"  {sum(tree.samples for tree in trees) / seconds:10,.0f} samples/s")
    verdict = "above" if tokens / seconds > TARGET_TOKENS_PER_SECOND else "BELOW"
    print(f"  {tokens / seconds:10,.0f} sampled tokens/s, {verdict} the {TARGET_TOKENS_PER_SECOND:,} of a fast engine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--tokenizer", help="folder of a tokenizer with a chat template; default: a small byte-level one")
    arguments = parser.parse_args()
    tokenizer = byte_tokenizer()
    if arguments.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    examples = [make_example(number) for number in range(arguments.trees)]
    for method in ("mcts_dpo", "best_of_n"):
        for granularity in ("argument", "call") if method == "mcts_dpo" else ("argument",):
            search = {"granularity": granularity, "root_samples": 12, "width": 4, "simulations": 8, "best_of": 16, "min_visits": 3}
            asyncio.run(measure(parse_config({"method": method, "search": search}), tokenizer, examples))


if __name__ == "__main__":
    main()
