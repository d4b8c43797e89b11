"""Policies whose vLLM server is a function: what it is asked goes in, what it answers comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from itool.config import PolicyConfig
from itool.policy.model_folder import read_model_folder
from itool.policy.protocol import Policy
from itool.policy.vllm import VllmPolicy
from tests.policy.conftest import CONTEXT, Folders, Opener
from tests.policy.test_contract import ask

MODELS = {"data": [{"id": "base", "parent": None}]}


def answered_by(folders: Folders, answer: Callable[[httpx.Request], Any], **settings: Any) -> Opener:
    """Opens policies whose server is the function `answer`, which may be a coroutine."""
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)

    def opened(adapter: Path | None) -> VllmPolicy:
        transport = httpx.MockTransport(answer)
        return VllmPolicy("http://server/v1", folder, adapter, transport=transport, **{"policy": PolicyConfig(), **settings})

    return opened


def enter(folders: Folders, answer: Callable[[httpx.Request], Any], adapter: Path | None = None, **settings: Any) -> None:
    """Open a policy, which asks its server some things, and close it."""

    async def nothing(_policy: Policy) -> None:
        """That is all."""

    ask(answered_by(folders, answer, **settings), adapter, nothing)


def statuses(codes: Iterable[int]) -> Callable[[httpx.Request], httpx.Response]:
    """A server that lists its model and then answers with these status codes, then well."""
    waiting = iter(codes)
    logprobs = {"token_logprobs": [0.0], "top_logprobs": [{"token_id:0": 0.0, "token_id:1": 0.0}]}
    good = {"choices": [{"index": 0, "finish_reason": "length", "token_ids": [3], "logprobs": logprobs}]}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=MODELS)
        code = next(waiting, 200)
        return httpx.Response(code, json=good if code == 200 else {"error": {"message": "engine\nis busy"}})

    return answer
