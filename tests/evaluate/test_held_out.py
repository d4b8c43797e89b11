"""Predictions, pass counts and perplexities, with a scripted policy and numbers by hand."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import pytest

from itool.config import parse_config
from itool.errors import DependencyError, NumericalError
from itool.policy.protocol import Sample
from itool.records import Example, Message, Tool, ToolCall

pytest.importorskip("transformers", reason="needs the train extra")
from itool.evaluate.held_out import ground_truth_perplexities, pass_counts, predict
from tests.fakes.byte_tokenizer import byte_tokenizer

CONFIG = parse_config(
    {"model": {"context_tokens": 400, "max_response_tokens": 60}, "evaluate": {"batch_sequences": 4}, "search": {"temperature": 0.7}}
)
TOKENIZER = byte_tokenizer()


class Lookup:
    """Answers by what the prompt asks for; sample i is answer i of its list, from the start again when they run out."""

    def __init__(self, answers: dict[str, list[str]], *, gone: bool = False) -> None:
        self.answers, self.gone = answers, gone
        self.in_flight = self.most_in_flight = 0
        self.asked: list[tuple[str, float, int]] = []
        self.scored: list[list[int]] = []

    async def sample(self, prompt_ids: Sequence[int], *, count: int, max_tokens: int, temperature: float, seed: int) -> list[Sample]:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if self.gone:
            raise DependencyError("the engine is gone")
        query = TOKENIZER.decode(list(prompt_ids)).rpartition("user: ")[2].partition("<|end|>")[0]
        self.asked.append((query, temperature, seed))
        return [self._sample(text, max_tokens) for text in itertools.islice(itertools.cycle(self.answers[query]), count)]

    def _sample(self, text: str, max_tokens: int) -> Sample:
        ids = (*TOKENIZER.encode(text), TOKENIZER.eos_token_id)[:max_tokens]
        return Sample(ids, (-0.1,) * len(ids), finished=ids[-1] == TOKENIZER.eos_token_id)

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        self.scored.append(list(continuation_ids))
        return [-0.5, *[-1.0] * (len(continuation_ids) - 1)]

    async def option_probabilities(self, prompt_ids: Sequence[int], option_ids: Sequence[int]) -> list[float]:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def example(number: int, *, text: bool = False, difficulty: Any = "easy") -> Example:
    calls = [] if text else [ToolCall(name="f", arguments={"a": number})]
    return Example(
        id=f"e{number}", messages=[Message(role="user", content=f"q{number}")], tools=[Tool(name="f")], calls=calls, difficulty=difficulty
    )


EXAMPLES = [example(0), example(1, difficulty="hard"), example(2, text=True), example(3), example(4, text=True), example(5)]
ANSWERS = {
    "q0": ["[f(a=0)]", "[f(a=9)]"],
    "q1": ["[f(a=9)]"],
    "q2": ["No tool fits."],
    "q3": ["[f(a=3), " + "f(a=3), " * 40],
    "q4": ["[f(a=4)]"],
    "q5": ["no"],
}


def test_predictions_come_in_order_with_their_verdicts() -> None:
    progress: list[tuple[int, int]] = []
    policy = Lookup(ANSWERS)
    predictions = asyncio.run(predict(policy, TOKENIZER, EXAMPLES, CONFIG, on_progress=lambda done, total: progress.append((done, total))))
    assert [p.example_id for p in predictions] == [e.id for e in EXAMPLES]
    assert [p.error for p in predictions] == [None, "wrong_argument", None, "unparseable", "call_instead_of_text", "text_instead_of_call"]
    assert [p.truncated for p in predictions] == [False, False, False, True, False, False]
    assert predictions[0].text == "[f(a=0)]"
    assert predictions[3].response_tokens == 60
    assert progress == [(done, 6) for done in range(1, 7)]
    assert policy.most_in_flight == 4
    assert {temperature for _, temperature, _ in policy.asked} == {0.0}


def test_answers_come_in_the_order_of_the_examples_though_long_prompts_are_asked_first() -> None:
    query = "q1, and a few words more"
    long = EXAMPLES[1].model_copy(update={"messages": [Message(role="user", content=query)]})
    policy = Lookup(ANSWERS | {query: ["[f(a=9)]"]})
    predictions = asyncio.run(predict(policy, TOKENIZER, [EXAMPLES[0], long, EXAMPLES[2]], CONFIG))
    assert [asked for asked, _, _ in policy.asked] == [query, "q0", "q2"]
    assert [(p.example_id, p.text) for p in predictions] == [("e0", "[f(a=0)]"), ("e1", "[f(a=9)]"), ("e2", "No tool fits.")]


def test_a_policy_that_computes_nan_ends_the_evaluation_as_a_numerical_fault() -> None:
    class Broken(Lookup):
        async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
            return [math.nan] * len(continuation_ids)

    known = EXAMPLES[0].model_copy(update={"response": "ab"})
    with pytest.raises(NumericalError, match="a perplexity is NaN"):
        asyncio.run(ground_truth_perplexities(Broken({}), TOKENIZER, [known]))


def test_a_lost_engine_ends_the_evaluation() -> None:
    with pytest.raises(DependencyError, match="engine is gone"):
        asyncio.run(predict(Lookup(ANSWERS, gone=True), TOKENIZER, EXAMPLES, CONFIG))


def test_pass_counts_depend_on_seed_and_example_only() -> None:
    policy, alone = Lookup(ANSWERS), Lookup(ANSWERS)
    counts = asyncio.run(pass_counts(policy, TOKENIZER, EXAMPLES, CONFIG, samples=3, seed=7))
    assert [(c.example_id, c.samples, c.correct) for c in counts][:3] == [("e0", 3, 2), ("e1", 3, 0), ("e2", 3, 3)]
    assert counts[1].tokens == 3 * len([*TOKENIZER.encode("[f(a=9)]"), "end"])
    asyncio.run(pass_counts(alone, TOKENIZER, EXAMPLES[1:2], CONFIG, samples=3, seed=7))
    assert alone.asked[0] in policy.asked
    assert len({seed for _, _, seed in policy.asked}) == len(EXAMPLES)
    assert {temperature for _, temperature, _ in policy.asked} == {0.7}
    asyncio.run(pass_counts(alone, TOKENIZER, EXAMPLES[1:2], CONFIG, samples=3, seed=8))
    assert alone.asked[0][2] != alone.asked[1][2]


def test_the_perplexity_of_the_ground_truth_by_hand() -> None:
    known = [EXAMPLES[0].model_copy(update={"response": "ab"})]
    policy = Lookup({})
    (found,) = asyncio.run(ground_truth_perplexities(policy, TOKENIZER, known))
    assert policy.scored == [[*TOKENIZER.encode("ab"), TOKENIZER.eos_token_id]]
    tokens = len(policy.scored[0])
    assert found.perplexity == pytest.approx(math.exp((tokens - 0.5) / tokens))
    assert found.response_tokens == tokens
