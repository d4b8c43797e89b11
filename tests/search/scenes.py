"""Examples and searches that the tests of this folder share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from itool.config import SearchConfig
from itool.records import Example, Message, SearchTree, Tool, ToolCall
from itool.search.mcts import SearchTask, TreeSearch
from itool.search.reading import TokenReader
from itool.search.steps import Granularity
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import ScriptedPolicy

PROMPT = (1, 2, 3)
WEATHER = '[get_weather(city="Oslo",unit="celsius",days=3)]'
WRONG_UNIT = '[get_weather(city="Oslo",unit="kelvin",days=3)]'
WRONG_CITY = '[get_weather(city="Rome",unit="celsius",days=3)]'
WRONG_DAYS = '[get_weather(city="Oslo",unit="celsius",days=4)]'
OTHER_ORDER = '[get_weather(unit="celsius",city="Oslo",days=3)]'
PROSE = "I cannot do that. Please ask someone else."


def weather_example(**changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": "weather-1",
        "messages": [Message(role="user", content="Weather in Oslo for three days?")],
        "tools": [Tool(name="get_weather")],
        "calls": [ToolCall(name="get_weather", arguments={"city": "Oslo", "unit": "celsius", "days": 3})],
        "response": WEATHER,
    }
    return Example(**fields | changes)


def text_example() -> Example:
    return weather_example(id="text-1", calls=[], response=PROSE)


def settings(**changes: Any) -> SearchConfig:
    return SearchConfig(**{"root_samples": 8, "width": 4, "simulations": 4} | changes)


def new_policy(answers: Sequence[str], **options: Any) -> ScriptedPolicy:
    return ScriptedPolicy(byte_tokenizer(), answers, prompt_tokens=len(PROMPT), **options)


def new_search(
    policy: ScriptedPolicy,
    config: SearchConfig,
    *,
    example: Example | None = None,
    inject: bool = True,
    max_tokens: int = 100,
    granularity: Granularity | None = None,
    run_seed: int = 17,
) -> TreeSearch:
    tokenizer = byte_tokenizer()
    example = example or weather_example()
    ground_truth = (*tokenizer.encode(example.response), tokenizer.eos_token_id) if inject and example.response is not None else None
    task = SearchTask(example, PROMPT, ground_truth, max_tokens, run_seed, iteration=1)
    return TreeSearch(policy, TokenReader(tokenizer), task, config, granularity or config.granularity)


def run_search(search: TreeSearch) -> SearchTree:
    async def run() -> SearchTree:
        while search.stopped is None:
            await search.simulate()
        return search.finish()

    return asyncio.run(run())


def children(tree: SearchTree, parent: int) -> list[int]:
    return [index for index, node in enumerate(tree.nodes) if node.parent == parent]
