"""A policy that answers from a list of texts: same arguments, same answer, like a real one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from itool.policy.protocol import Sample

LOGPROB = -0.1
"""Of every token, sampled or asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one call of `sample` asked for; `ids` are those of prompt and state."""

    ids: tuple[int, ...]
    count: int
    max_tokens: int
    temperature: float
    seed: int


class ScriptedPolicy:
    """Samples whole responses among `answers(prompt)` that continue the state, uniformly; ends each with the end-of-turn token.

    `requests` records what was asked. `before_sample` may raise, to play a broken engine.
    """

    def __init__(
        self,
        tokenizer: Any,
        answers: Sequence[str],
        *,
        prompt_tokens: int,
        confidence: Callable[[Sequence[int]], float] = lambda ids: 0.5,
        before_sample: Callable[[Sequence[int]], None] = lambda ids: None,
    ) -> None:
        self._tokenizer = tokenizer
        self._answers = list(answers)
        self._prompt_tokens = prompt_tokens
        self._confidence = confidence
        self._before_sample = before_sample
        self.requests: list[Request] = []
        self.logprob_requests: list[tuple[int, ...]] = []
        self.questions = 0

    async def sample(self, prompt_ids: Sequence[int], *, count: int, max_tokens: int, temperature: float, seed: int) -> list[Sample]:
        self._before_sample(prompt_ids)
        self.requests.append(Request(tuple(prompt_ids), count, max_tokens, temperature, seed))
        await asyncio.sleep(0)  # a real engine lets other trees ask meanwhile
        state = self._tokenizer.decode(list(prompt_ids[self._prompt_tokens :]), skip_special_tokens=True)
        fitting = [answer[len(state) :] for answer in self._answers if answer.startswith(state)] or [""]
        return [self._draw(random.Random(f"{seed}/{index}").choice(fitting), max_tokens) for index in range(count)]

    def _draw(self, text: str, max_tokens: int) -> Sample:
        ids = (*self._tokenizer.encode(text), self._tokenizer.eos_token_id)
        kept = ids[:max_tokens]
        return Sample(kept, (LOGPROB,) * len(kept), finished=len(kept) == len(ids))

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        self.logprob_requests.append(tuple(continuation_ids))
        return [LOGPROB] * len(continuation_ids)

    async def option_probabilities(self, prompt_ids: Sequence[int], option_ids: Sequence[int]) -> list[float]:
        self.questions += 1
        correct = self._confidence(prompt_ids)
        return [1.0 - correct, correct]

    def forget(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None
