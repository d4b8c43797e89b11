"""The policy inside this process: no server, batched sampling with a shared prompt cache, deterministic.

Requests are coroutines that queue up; one worker task serves them all: it takes in what waits, lets every row in flight advance by one
token, and hands the event loop over between two tokens, so that a tree that got its samples can ask for the next ones while others still
decode. All of it runs in the event loop's thread: the order of the work, and with it every rounding, repeats from run to run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from itool.config import ModelConfig, PolicyConfig
from itool.errors import DependencyError, ItoolError, NumericalError
from itool.policy.cohort import Cohort, CohortsPlan, EndedRow, RowBlock, draw_tokens
from itool.policy.model_folder import read_model_folder
from itool.policy.packed import Span, load_packed_model
from itool.policy.prefixes import PrefixCache
from itool.policy.protocol import Sample
from itool.policy.randomness import stream_keys

Answer = TypeVar("Answer")

MAX_COHORTS = 6
"""Most cohorts at a time: each costs its own attention calls in every layer, however few rows it has left."""

PREFILL_TOKENS = 8192
"""Most prompt tokens in one forward."""

LOGITS_ELEMENTS = 1 << 26
"""Most logits in one forward (256 MiB in float32)."""

PREFIX_CACHE_BYTES = 512 << 20

LOOP_TURNS = 8
"""Turns of the event loop that a finished request gets to ask its next question before the batch goes on without it."""


@dataclass(eq=False)
class _Sampling:
    """A waiting or running `sample` call."""

    prompt_ids: tuple[int, ...]
    seed: int
    count: int
    max_tokens: int
    temperature: float
    future: asyncio.Future[list[Sample]]
    admitted: int = 0
    owners: list[int] = field(default_factory=list)
    samples: dict[int, Sample] = field(default_factory=dict)


@dataclass(eq=False)
class _Scoring:
    """A waiting question about the next-token distributions after `ids[: first + 1]`, `ids[: first + 2]`, ..., `ids`."""

    ids: tuple[int, ...]
    first: int
    remember: bool
    future: asyncio.Future[Tensor]

    @property
    def rows(self) -> int:
        return len(self.ids) - self.first


class _Wanted(NamedTuple):
    """Token ids to run through the model; logits are wanted after position `first` and later."""

    ids: tuple[int, ...]
    first: int


class _Prefilled(NamedTuple):
    """The cache of `ids`, and the logits that were wanted [len(ids) - first, V]."""

    ids: tuple[int, ...]
    cache: Tensor
    logits: Tensor


class EmbeddedPolicy:
    """See protocol.Policy. Answers inside `async with`."""

    def __init__(self, model_dir: Path, adapter_dir: Path | None, *, model: ModelConfig, policy: PolicyConfig) -> None:
        self._folder = read_model_folder(model_dir, context_tokens=model.context_tokens)
        self._model = load_packed_model(model_dir, adapter_dir, dtype=model.dtype, context_tokens=self._folder.context_tokens)
        self._stop_ids = np.array(self._folder.stop_ids, dtype=np.int64)
        self._batch_sequences = policy.batch_sequences
        self._prefixes = PrefixCache(PREFIX_CACHE_BYTES)
        self._sampling: deque[_Sampling] = deque()
        self._scoring: deque[_Scoring] = deque()
        self._cohorts: list[Cohort] = []
        self._owners: dict[int, tuple[_Sampling, int]] = {}
        self._owner_numbers = itertools.count()
        self._unanswered: set[asyncio.Future[Any]] = set()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="embedded policy")
        self._worker.add_done_callback(self._fail_waiting)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def sample(self, prompt_ids: Sequence[int], *, count: int, max_tokens: int, temperature: float, seed: int) -> list[Sample]:
        """See protocol.Policy.sample."""
        self._folder.check_request(prompt_ids, max_tokens)
        self._folder.check_ids(prompt_ids)
        distinct = min(count, 1) if temperature == 0 else count
        future: asyncio.Future[list[Sample]] = asyncio.get_running_loop().create_future()
        if distinct < 1:
            return []
        self._sampling.append(_Sampling(tuple(prompt_ids), seed, distinct, max_tokens, temperature, future))
        samples = await self._answer(future)
        return samples * count if distinct < count else samples

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """See protocol.Policy.logprobs."""
        if not continuation_ids:
            return []
        self._folder.check_request(prompt_ids, len(continuation_ids))
        ids = (*prompt_ids, *continuation_ids)
        self._folder.check_ids(ids)
        logits = await self._score(ids[:-1], first=len(prompt_ids) - 1, remember=False)
        chosen = torch.tensor(continuation_ids, device=logits.device)[:, None]
        result: list[float] = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        return result

    async def option_probabilities(self, prompt_ids: Sequence[int], option_ids: Sequence[int]) -> list[float]:
        """See protocol.Policy.option_probabilities."""
        self._folder.check_request(prompt_ids, 1)
        self._folder.check_ids((*prompt_ids, *option_ids))
        logits = await self._score(tuple(prompt_ids), first=len(prompt_ids) - 1, remember=True)
        result: list[float] = logits[0, list(option_ids)].double().softmax(-1).tolist()
        return result

    def forget(self) -> None:
        """See protocol.Policy.forget: a prompt read in one piece and one continued from a kept prefix differ in the last bits."""
        self._prefixes = PrefixCache(PREFIX_CACHE_BYTES)

    async def _score(self, ids: tuple[int, ...], *, first: int, remember: bool) -> Tensor:
        future: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._scoring.append(_Scoring(ids, first, remember, future))
        return await self._answer(future)

    async def _answer(self, future: asyncio.Future[Answer]) -> Answer:
        if self._worker is None or self._worker.done():
            closed = DependencyError("the embedded policy is closed", remedy="Ask it inside its `async with` block")
            raise _failure(self._worker) or closed
        self._unanswered.add(future)
        future.add_done_callback(self._unanswered.discard)
        self._wake.set()
        return await future

    # The worker

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            answered = True
            while answered or self._sampling or self._scoring or self._cohorts:
                for _ in range(LOOP_TURNS if answered else 1):
                    await asyncio.sleep(0)
                answered = self._advance()

    @torch.inference_mode()
    def _advance(self) -> bool:
        """One round of work; says whether a request was answered."""
        scored = self._answer_scoring()
        ended = self._admit()
        if self._cohorts:
            plan = CohortsPlan(self._cohorts)
            ids = torch.cat([cohort.last_ids for cohort in self._cohorts])
            positions = torch.cat([cohort.positions for cohort in self._cohorts])
            ended |= self._draw(self._model.decode(ids, positions, plan), self._cohorts)
            self._cohorts = [cohort for cohort in self._cohorts if cohort.rows]
        return ended or scored

    def _admit(self) -> bool:
        """Start waiting rows as one new cohort when there is room; says whether a request was answered by its first token."""
        free = self._batch_sequences - sum(cohort.rows for cohort in self._cohorts)
        if free < 1 or not self._sampling or len(self._cohorts) >= MAX_COHORTS:
            return False
        taken: list[tuple[_Sampling, range]] = []
        while free and self._sampling:
            request = self._sampling[0]
            rows = range(request.admitted, min(request.count, request.admitted + free))
            request.admitted = rows.stop
            free -= len(rows)
            if request.admitted == request.count:
                self._sampling.popleft()
            if not request.future.done():
                taken.append((request, rows))
        return self._start(taken) if taken else False

    def _start(self, taken: Sequence[tuple[_Sampling, range]]) -> bool:
        prompts = list(dict.fromkeys(request.prompt_ids for request, _ in taken))
        results = {found.ids: found for found in self._prefill([_Wanted(ids, len(ids) - 1) for ids in prompts])}
        for ids, found in results.items():
            self._prefixes.add(ids, found.cache)
        blocks = []
        for request, rows in taken:
            owner = next(self._owner_numbers)
            self._owners[owner] = (request, rows.start)
            request.owners.append(owner)
            cache = results[request.prompt_ids].cache
            blocks.append(RowBlock(owner, cache, stream_keys(request.seed, rows), request.max_tokens, request.temperature))
        cohort = Cohort(self._model, blocks)
        first = torch.cat([results[request.prompt_ids].logits for request, _ in taken])
        ended = self._draw(first[torch.from_numpy(cohort.groups).to(first.device)], [cohort])
        if cohort.rows:
            self._cohorts.append(cohort)
        return ended

    def _draw(self, logits: Tensor, cohorts: Sequence[Cohort]) -> bool:
        """Give each row of the cohorts its next token; says whether a request was answered."""
        temperatures = torch.cat([cohort.temperatures for cohort in cohorts])
        tokens, logprobs = draw_tokens(logits, temperatures, torch.cat([cohort.uniforms() for cohort in cohorts]))
        _check_finite(logprobs)
        sizes = [cohort.rows for cohort in cohorts]
        answered = False
        for cohort, ids, logps in zip(cohorts, tokens.split_with_sizes(sizes), logprobs.split_with_sizes(sizes), strict=True):
            for row in cohort.advance(ids, logps, self._stop_ids):
                answered |= self._deliver(row)
            cohort.compact()
        return answered

    def _deliver(self, row: EndedRow) -> bool:
        request, offset = self._owners[row.owner]
        request.samples[offset + row.row] = Sample(row.token_ids, row.logprobs, row.finished)
        if len(request.samples) < request.count:
            return False
        for owner in request.owners:
            del self._owners[owner]
        if not request.future.done():
            request.future.set_result([request.samples[number] for number in range(request.count)])
        return True

    def _answer_scoring(self) -> bool:
        waiting = [request for request in self._scoring if not request.future.done()]
        self._scoring.clear()
        answers = self._prefill([_Wanted(request.ids, request.first) for request in waiting])
        for request, found in zip(waiting, answers, strict=True):
            _check_finite(found.logits)
            if request.remember:
                self._prefixes.add(request.ids, found.cache)
            request.future.set_result(found.logits)
        return bool(waiting)

    def _prefill(self, sequences: Sequence[_Wanted]) -> Iterator[_Prefilled]:
        """One answer per sequence, in their order, in forwards of bounded size."""
        most_rows = max(LOGITS_ELEMENTS // self._model.vocabulary, 1)
        chunk: list[_Wanted] = []
        tokens = rows = 0
        for wanted in sequences:
            ids, first = wanted
            if chunk and (tokens + len(ids) > PREFILL_TOKENS or rows + len(ids) - first > most_rows):
                yield from self._prefill_chunk(chunk)
                chunk, tokens, rows = [], 0, 0
            chunk.append(wanted)
            tokens += len(ids)
            rows += len(ids) - first
        if chunk:
            yield from self._prefill_chunk(chunk)

    def _prefill_chunk(self, chunk: Sequence[_Wanted]) -> Iterator[_Prefilled]:
        spans: list[Span] = []
        wanted: list[int] = []
        start = 0
        for ids, first in chunk:
            past, known = self._prefixes.longest(ids, at_most=first)
            cache = self._model.new_cache(len(ids))
            if known is not None:
                cache[:, :, :, :past] = known[:, :, :, :past]
            spans.append(Span(ids[past:], past, cache))
            wanted.extend(range(start + first - past, start + len(ids) - past))
            start += len(ids) - past
        logits = self._model.prefill(spans, wanted).split_with_sizes([len(ids) - first for ids, first in chunk])
        for (ids, _), span, rows in zip(chunk, spans, logits, strict=True):
            yield _Prefilled(ids, span.cache, rows)

    def _fail_waiting(self, worker: asyncio.Task[None]) -> None:
        """The worker ended: tell everyone who waits why."""
        reason = _failure(worker) or DependencyError("the embedded policy was closed while a request was running")
        for future in self._unanswered:
            if not future.done():
                future.set_exception(reason)


def _failure(worker: asyncio.Task[None] | None) -> BaseException | None:
    """What the worker died of, None when it was closed. No request is to blame for a fault of the engine, and a retry may meet it again."""
    error = None if worker is None or worker.cancelled() else worker.exception()
    if error is None or isinstance(error, ItoolError):
        return error
    remedy = "Start the stage again; where memory ran out, with a smaller policy.batch_sequences"
    failure = ItoolError(f"the embedded policy failed: {type(error).__name__}: {error}", remedy=remedy)
    failure.__cause__ = error
    return failure


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NumericalError("the model's logits are not finite", remedy="Use an earlier adapter or a smaller learning rate")
