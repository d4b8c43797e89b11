"""What every policy promises (itool/policy/protocol.py), asked of both engines."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from itool.config import PolicyConfig
from itool.errors import InputError
from itool.policy.opening import open_policy
from itool.policy.protocol import Policy, Sample
from tests.policy.conftest import CONTEXT, MODEL, SERVED, SERVED_ROUNDING, STOP, VOCABULARY, Folders, Opener

Result = TypeVar("Result")

PROMPT = [5, 17, 33, 4, 60, 61, 9, 12, 80, 3, 44, 21, 7, 7, 90, 31, 52, 18, 66, 25]
OTHER = [8, 50, 51, 52, 41, 7]


def ask(opened: Opener, adapter: Path | None, question: Callable[[Policy], Awaitable[Result]]) -> Result:
    async def conversation() -> Result:
        async with opened(adapter) as policy:
            return await question(policy)

    return asyncio.run(conversation())


def draw(
    policy: Policy, prompt: list[int] = PROMPT, *, count: int = 6, tokens: int = 24, seed: int = 3, t: float = 1.0
) -> Awaitable[list[Sample]]:
    return policy.sample(prompt, count=count, max_tokens=tokens, temperature=t, seed=seed)


def ids(samples: list[Sample]) -> list[tuple[int, ...]]:
    return [sample.token_ids for sample in samples]


def test_the_same_seed_gives_the_same_samples_and_another_seed_gives_others(engine: Opener, folders: Folders) -> None:
    async def question(policy: Policy) -> list[list[Sample]]:
        return [await draw(policy, seed=3), await draw(policy, seed=3), await draw(policy, seed=4)]

    first, again, other = ask(engine, folders.adapter, question)
    assert ids(first) == ids(again)
    assert not set(ids(first)) & set(ids(other))
    assert len(set(ids(first))) == 6


def test_samples_are_the_same_after_a_new_start(engine: Opener, folders: Folders) -> None:
    assert ids(ask(engine, folders.adapter, draw)) == ids(ask(engine, folders.adapter, draw))


def test_sample_i_does_not_depend_on_the_count(engine: Opener, folders: Folders) -> None:
    async def question(policy: Policy) -> list[list[Sample]]:
        return [await draw(policy, count=count, tokens=12) for count in (1, 5, 70)]

    one, five, many = ask(engine, folders.adapter, question)
    assert ids(many)[:5] == ids(five)
    assert ids(five)[:1] == ids(one)
    assert len(many) == 70


def test_samples_do_not_depend_on_what_else_is_in_flight(engine: Opener, folders: Folders, rounding: float) -> None:
    async def question(policy: Policy) -> tuple[list[Sample], list[Sample]]:
        alone = await draw(policy)
        others = [draw(policy, OTHER * (1 + number % 5), count=4, tokens=8 + number, seed=number) for number in range(16)]
        crowd = await asyncio.gather(*others[:8], draw(policy), *others[8:])
        return alone, crowd[8]

    alone, crowded = ask(engine, folders.adapter, question)
    assert ids(alone) == ids(crowded)
    for one, other in zip(alone, crowded, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=rounding)


def test_a_samples_logprobs_are_those_of_logprobs_at_temperature_one(engine: Opener, folders: Folders, rounding: float) -> None:
    async def question(policy: Policy) -> list[tuple[Sample, list[float]]]:
        samples = await draw(policy) + await draw(policy, t=0.6) + await draw(policy, t=0.0, count=1)
        scores = await asyncio.gather(*(policy.logprobs(PROMPT, sample.token_ids) for sample in samples))
        return list(zip(samples, scores, strict=True))

    for sample, scores in ask(engine, folders.adapter, question):
        assert len(sample.logprobs) == len(sample.token_ids)
        assert sample.logprobs == pytest.approx(scores, abs=rounding)


def test_a_sample_ends_at_the_end_of_turn_or_at_its_limit(engine: Opener, folders: Folders) -> None:
    samples = ask(engine, folders.adapter, lambda policy: draw(policy, count=60, tokens=50))
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        assert sample.finished == (sample.token_ids[-1] == STOP)
        assert STOP not in sample.token_ids[:-1]
        assert sample.finished or len(sample.token_ids) == 50


def test_one_token_is_a_sample(engine: Opener, folders: Folders) -> None:
    samples = ask(engine, folders.adapter, lambda policy: draw(policy, count=40, tokens=1))
    assert all(len(sample.token_ids) == 1 for sample in samples)
    assert len(set(ids(samples))) > 5


def test_temperature_zero_is_greedy(engine: Opener, folders: Folders) -> None:
    async def question(policy: Policy) -> tuple[list[Sample], list[float]]:
        samples = await draw(policy, t=0.0, count=3, tokens=8, seed=1)
        return samples, await policy.option_probabilities(PROMPT, list(range(VOCABULARY)))

    samples, distribution = ask(engine, folders.adapter, question)
    assert samples[0] == samples[1] == samples[2]
    assert samples[0].token_ids[0] == max(range(VOCABULARY), key=distribution.__getitem__)


def test_samples_follow_the_distribution(engine: Opener, folders: Folders) -> None:
    async def question(policy: Policy) -> tuple[list[Sample], list[float]]:
        return await draw(policy, count=600, tokens=1), await policy.option_probabilities(PROMPT, list(range(VOCABULARY)))

    samples, distribution = ask(engine, folders.adapter, question)
    likely = max(range(VOCABULARY), key=distribution.__getitem__)
    share = sum(sample.token_ids[0] == likely for sample in samples) / 600
    deviation = math.sqrt(distribution[likely] * (1 - distribution[likely]) / 600)
    assert abs(share - distribution[likely]) < 4 * deviation


def test_option_probabilities_are_renormalised_logprobs_in_the_order_asked(engine: Opener, folders: Folders, rounding: float) -> None:
    async def question(policy: Policy) -> tuple[list[float], list[float], list[list[float]]]:
        options = await policy.option_probabilities(PROMPT, [40, 11])
        swapped = await policy.option_probabilities(PROMPT, [11, 40])
        return options, swapped, [await policy.logprobs(PROMPT, [token]) for token in (40, 11)]

    options, swapped, logps = ask(engine, folders.adapter, question)
    assert sum(options) == pytest.approx(1.0)
    assert options == pytest.approx(swapped[::-1], abs=1e-6)
    assert math.log(options[0] / options[1]) == pytest.approx(logps[0][0] - logps[1][0], abs=rounding)


def test_an_adapter_changes_the_answers_and_another_one_again(engine: Opener, folders: Folders, rounding: float) -> None:
    continuation = [50, 20, 30]
    answers = [
        ask(engine, adapter, lambda policy: policy.logprobs(PROMPT, continuation)) for adapter in (folders.adapter, folders.other_adapter)
    ]
    again = ask(engine, folders.adapter, lambda policy: policy.logprobs(PROMPT, continuation))
    assert max(abs(a - b) for a, b in zip(*answers, strict=True)) > 0.05
    assert again == pytest.approx(answers[0], abs=rounding)


def test_prompt_and_answer_may_fill_the_context_and_not_a_token_more(engine: Opener, folders: Folders) -> None:
    async def question(policy: Policy) -> list[Sample]:
        prompt = [3 + number % 90 for number in range(CONTEXT - 4)]
        full = await draw(policy, prompt, tokens=4, count=2)
        assert len(await policy.logprobs(prompt, [5, 6, 7, 8])) == 4
        with pytest.raises(InputError, match=f"exceed the context of {CONTEXT} tokens"):
            await draw(policy, prompt, tokens=5)
        with pytest.raises(InputError, match="exceed the context"):
            await policy.logprobs(prompt, [5] * 5)
        return full

    assert all(len(sample.token_ids) == 4 or sample.finished for sample in ask(engine, folders.adapter, question))


def test_bad_questions_are_input_errors(engine: Opener, folders: Folders) -> None:
    async def question(policy: Policy) -> None:
        with pytest.raises(InputError, match="prompt is empty"):
            await draw(policy, [])
        with pytest.raises(InputError, match=f"token id {VOCABULARY} is outside"):
            await draw(policy, [5, VOCABULARY])
        with pytest.raises(InputError, match="max_tokens is 0"):
            await draw(policy, tokens=0)
        assert await policy.logprobs(PROMPT, []) == []

    ask(engine, folders.adapter, question)


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_both_engines_give_the_same_logprobs_to_1e_4(folders: Folders, vllm_url: str, with_adapter: bool) -> None:
    """In float32; on a GPU, where vLLM has bfloat16, both have that."""

    async def scores(config: PolicyConfig) -> list[float]:
        async with open_policy(folders.model, folders.adapter if with_adapter else None, SERVED, config) as policy:
            return [*await policy.logprobs(PROMPT, OTHER * 8), *await policy.option_probabilities(PROMPT, [4, 5, 6])]

    embedded = asyncio.run(scores(PolicyConfig()))
    served = asyncio.run(scores(PolicyConfig(backend="vllm", url=vllm_url)))
    assert embedded == pytest.approx(served, abs=SERVED_ROUNDING)


@pytest.mark.parametrize("backend", ["embedded", "vllm"])
def test_folders_that_cannot_be_used_are_named(folders: Folders, tmp_path: Path, backend: str) -> None:
    async def opened(model: Path, adapter: Path | None) -> None:
        config = PolicyConfig.model_validate({"backend": backend})
        async with open_policy(model, adapter, MODEL, config):
            pytest.fail("a policy was opened")

    with pytest.raises(InputError, match=r"model folder .*nowhere does not exist"):
        asyncio.run(opened(tmp_path / "nowhere", None))
    with pytest.raises(InputError, match=r"has no config.json"):
        asyncio.run(opened(tmp_path, None))
    with pytest.raises(InputError, match=r"adapter folder .*nowhere does not exist"):
        asyncio.run(opened(folders.model, tmp_path / "nowhere"))
