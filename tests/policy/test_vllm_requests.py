"""What a vLLM client asks, how much of it at a time and by what way, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from itool.config import PolicyConfig
from itool.errors import InputError
from itool.policy import vllm
from itool.policy.protocol import Policy
from tests.policy.conftest import STOP, Folders
from tests.policy.test_contract import PROMPT, Result, ask, draw
from tests.policy.vllm_scenes import MODELS, answered_by, enter, statuses


def asked_and_answered(folders: Folders, question: Callable[[Policy], Awaitable[Result]]) -> tuple[list[dict[str, Any]], Result]:
    """What a policy with an adapter asks its server, and what it makes of the answers.

    The server says choice by choice, the last one first: choice i is a single token, 10 + i or the end of the turn; token t has
    log-probability -t / 100, as the next one and at each place of the prompt.
    """
    name = vllm.adapter_name(folders.adapter)
    bodies: list[dict[str, Any]] = []

    def choice(body: dict[str, Any], index: int) -> dict[str, Any]:
        token = STOP if index == 1 else 10 + index
        top = {f"token_id:{asked}": -asked / 100 for asked in body.get("logprob_token_ids", [])}
        rows = [None, *({str(asked): {"logprob": -asked / 100}} for asked in body["prompt"][1:])] if "prompt_logprobs" in body else None
        logprobs = {"token_logprobs": [-token / 100], "top_logprobs": [top]}
        return {"index": index, "finish_reason": "stop", "token_ids": [token], "logprobs": logprobs, "prompt_logprobs": rows}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [*MODELS["data"], {"id": name, "parent": "base"}]})
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [choice(bodies[-1], index) for index in reversed(range(bodies[-1].get("n", 1)))]})

    async def asked(policy: Policy) -> Result:
        bodies.clear()
        return await question(policy)

    answered = ask(answered_by(folders, answer), folders.adapter, asked)
    assert {body["model"] for body in bodies} == {name}
    assert all(vllm.PLAIN_SAMPLING.items() <= body.items() for body in bodies), "a server has defaults of its own"
    return bodies, answered


def test_every_sample_of_a_request_has_its_own_seed_and_its_own_place(folders: Folders) -> None:
    bodies, samples = asked_and_answered(folders, lambda policy: draw(policy, count=70, tokens=5, seed=3, t=0.7))
    first = vllm.derived_seed(3)
    assert sorted((body["n"], body["seed"]) for body in bodies) == [(6, first + 64), (64, first)]
    for body in bodies:
        assert (body["logprobs"], body["return_token_ids"]) == (0, True)
        assert (body["prompt"], body["max_tokens"], body["temperature"], body["stop_token_ids"]) == (PROMPT, 5, 0.7, [STOP])
    tokens = [STOP if index % 64 == 1 else 10 + index % 64 for index in range(70)]
    assert [sample.token_ids for sample in samples] == [(token,) for token in tokens]
    assert [sample.logprobs for sample in samples] == [(-token / 100,) for token in tokens]
    assert [index for index, sample in enumerate(samples) if sample.finished] == [1, 65]


def test_log_probabilities_are_those_of_the_continuations_own_tokens(folders: Folders) -> None:
    bodies, logps = asked_and_answered(folders, lambda policy: policy.logprobs([5, 17], [33, 4, 60]))
    assert logps == pytest.approx([-0.33, -0.04, -0.60])
    assert [body["prompt"] for body in bodies] == [[5, 17, 33, 4]]
    asked = {"prompt_logprobs": 0, "logprob_token_ids": [60], "logprobs": 1, "return_tokens_as_token_ids": True}
    assert (asked | {"max_tokens": 1, "temperature": 0.0}).items() <= bodies[0].items()
    assert asked_and_answered(folders, lambda policy: policy.logprobs([5, 17], [33]))[1] == pytest.approx([-0.33])


def test_options_have_the_order_in_which_they_were_asked_for(folders: Folders) -> None:
    (body,), (much, little) = asked_and_answered(folders, lambda policy: policy.option_probabilities(PROMPT, [11, 40]))
    asked = {"logprob_token_ids": [11, 40], "logprobs": 1, "return_tokens_as_token_ids": True, "max_tokens": 1, "temperature": 0.0}
    assert asked.items() <= body.items()
    assert math.log(much / little) == pytest.approx(0.29)
    _, swapped = asked_and_answered(folders, lambda policy: policy.option_probabilities(PROMPT, [40, 11]))
    assert swapped == pytest.approx([little, much])


def test_greedy_copies_are_asked_for_once(folders: Folders) -> None:
    bodies, samples = asked_and_answered(folders, lambda policy: draw(policy, count=3, tokens=5, t=0.0))
    assert [body["n"] for body in bodies] == [1]
    assert [sample.token_ids for sample in samples] == [(10,)] * 3


def test_no_more_requests_are_in_flight_than_the_settings_allow(folders: Folders) -> None:
    in_flight, most = 0, 0

    async def serve(request: httpx.Request) -> httpx.Response:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        in_flight -= 1
        return statuses([])(request)

    async def question(policy: Policy) -> None:
        await asyncio.gather(*(draw(policy, count=1, tokens=1, seed=seed) for seed in range(12)))

    ask(answered_by(folders, serve, policy=PolicyConfig(max_requests=3)), None, question)
    assert most == 3


def test_a_failed_part_of_a_large_request_ends_the_others(folders: Folders) -> None:
    ended = []

    async def serve(request: httpx.Request) -> httpx.Response:
        if b'"n":' not in request.content:
            return statuses([])(request)
        if b'"n":64' not in request.content:
            return httpx.Response(400, json={"error": {"message": "no"}})
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(request)
        raise AssertionError

    async def question(policy: Policy) -> None:
        with pytest.raises(InputError, match="refuses the request"):
            await draw(policy, count=130, tokens=1)
        assert len(ended) == 2

    ask(answered_by(folders, serve), None, question)


def test_every_request_carries_the_key(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    keys: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers.get("Authorization"))
        return statuses([])(request)

    enter(folders, answer)
    assert keys == ["Bearer secret"] * 2


@pytest.mark.parametrize(("url", "through_proxy"), [("http://127.0.0.1:8000", False), ("http://vllm.example:8000/v1", True)])
def test_a_server_of_ones_own_is_reached_through_the_proxy_unless_it_is_on_this_machine(url: str, through_proxy: bool) -> None:
    assert vllm.client_settings(url, PolicyConfig(adapters="load"))["trust_env"] is through_proxy
