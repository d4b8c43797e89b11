"""What `evaluate` measures, on a policy that answers from a script."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from itool.config import parse_config
from itool.data.chat import render_prompt
from itool.records import ToolCall
from jobs import evaluate
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import ScriptedPolicy
from tests.search.scenes import WEATHER, weather_example

EASY = [weather_example(id=f"easy-{number}") for number in range(20)]
HARD = [example.model_copy(update={"id": f"hard-{number}", "calls": [ToolCall(name="get_weather")]}) for number, example in enumerate(EASY)]


def a_policy() -> ScriptedPolicy:
    return ScriptedPolicy(byte_tokenizer(), [WEATHER], prompt_tokens=len(render_prompt(byte_tokenizer(), EASY[0])))


def test_pass_at_k_is_of_examples_from_all_over_the_file_and_says_of_how_many() -> None:
    """A file that is sorted by difficulty would else give only its easy ones."""
    config = parse_config({"evaluate": {"pass_k": [1], "pass_examples": 12}})
    stage: Any = SimpleNamespace(config=config, tokens=lambda _count: None, raise_if_stopped=lambda: None)
    found = asyncio.run(evaluate._pass_at_k(stage, a_policy(), byte_tokenizer(), [*EASY, *HARD]))
    assert found["pass_examples"] == 12
    assert 0 < found["pass_at_k"]["1"] < 1
