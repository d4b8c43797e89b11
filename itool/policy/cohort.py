"""Rows that started together and decode in lockstep: prompts stored once per request, continuations in one preallocated cache.

A row's attention is computed in two parts, over its prompt (shared by the rows of a group) and over its own continuation, and the two
are merged exactly by their normalisers. Rows that ended are taken out now and then, so that the batch shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from itool.policy.packed import PackedModel
from itool.policy.randomness import Words, uniforms

KEEP_DEAD = 0.1
"""Share of ended rows that a cohort carries along before it is compacted."""


@dataclass(frozen=True)
class RowBlock:
    """Rows that one request adds to a cohort: all continue one prompt, whose cache is `prompt` [layers, 2, K, T, D]."""

    owner: int
    prompt: Tensor
    keys: Words
    max_tokens: int
    temperature: float


@dataclass(frozen=True)
class EndedRow:
    """A complete sample. `owner` and `row` say which row of which block it was."""

    owner: int
    row: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class Cohort:
    """N rows in P groups that have each generated `length` tokens. `rows` is N; it shrinks. `groups` [N] is the prompt of each row."""

    def __init__(self, model: PackedModel, blocks: Sequence[RowBlock]) -> None:
        counts = [len(block.keys) for block in blocks]
        device = model.device
        self.rows = sum(counts)
        self.length = 0
        self.groups = np.repeat(np.arange(len(blocks)), counts)
        self._owner = np.repeat([block.owner for block in blocks], counts)
        self._row = np.concatenate([np.arange(count) for count in counts])
        self._keys = np.concatenate([block.keys for block in blocks])
        self._limit = np.repeat([block.max_tokens for block in blocks], counts)
        self._alive = np.ones(self.rows, dtype=bool)
        longest = int(self._limit.max())
        self._tokens = np.zeros((self.rows, longest), dtype=np.int64)
        self._logprobs = np.zeros((self.rows, longest), dtype=np.float32)
        self.temperatures = torch.tensor(np.repeat([block.temperature for block in blocks], counts), dtype=torch.float32, device=device)
        lengths = [block.prompt.shape[3] for block in blocks]
        self._prompt_tokens = torch.tensor(np.repeat(lengths, counts), dtype=torch.int64, device=device)
        self._prompts, self._bias = _pad_prompts([block.prompt for block in blocks])
        shape = model.shape
        self._own = torch.empty(shape.layers, 2, self.rows, shape.kv_heads, longest, shape.head_size, dtype=model.dtype, device=device)
        self.last_ids = torch.zeros(self.rows, dtype=torch.int64, device=device)
        self._place()

    @property
    def positions(self) -> Tensor:
        """Position of the newest token of each row, int64 [N]."""
        return self._prompt_tokens + (self.length - 1)

    def uniforms(self) -> Tensor:
        """The random number that decides each row's next token, float32 [N]."""
        return torch.from_numpy(uniforms(self._keys, self.length)).to(self.last_ids.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of the newest tokens, [N, H, D]; see packed.Plan. Stores their keys and values."""
        rows, heads, size = query.shape
        kv_heads = key.shape[1]
        keys, values = self._own[layer, :, : self.rows]
        column = self.length - 1
        keys[:, :, column] = key
        values[:, :, column] = value
        query = query.reshape(rows, kv_heads, heads // kv_heads, size)
        own, own_norm = _attention(query, keys[:, :, : self.length], values[:, :, : self.length], None, scale)
        shared, shared_norm = self._attend_prompt(layer, query, scale)
        return torch.lerp(own, shared, torch.sigmoid(shared_norm - own_norm).to(own.dtype)).reshape(rows, heads, size)

    def _attend_prompt(self, layer: int, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The prompt's part of the attention: all rows of a group read its prompt's cache together."""
        _, kv_heads, share, size = query.shape
        slots = query.new_zeros(self._slot_count, kv_heads, share, size) if self._slots is not None else query
        if self._slots is not None:
            slots[self._slots] = query
        prompts = self._prompts.shape[2]
        width = self._slot_count // prompts
        grouped = slots.view(prompts, width, kv_heads, share, size).transpose(1, 2).reshape(prompts, kv_heads, width * share, size)
        keys, values = self._prompts[layer]
        output, norm = _attention(grouped, keys, values, self._bias, scale)
        output = output.view(prompts, kv_heads, width, share, size).transpose(1, 2).reshape(-1, kv_heads, share, size)
        norm = norm.view(prompts, kv_heads, width, share, 1).transpose(1, 2).reshape(-1, kv_heads, share, 1)
        return (output, norm) if self._slots is None else (output[self._slots], norm[self._slots])

    def advance(self, token_ids: Tensor, logprobs: Tensor, stop_ids: npt.NDArray[np.int64]) -> list[EndedRow]:
        """Append one token per row, [N] each; gives the rows that ended with it."""
        self.last_ids = token_ids
        tokens = token_ids.numpy(force=True)
        self._tokens[:, self.length] = tokens
        self._logprobs[:, self.length] = logprobs.numpy(force=True)
        self.length += 1
        stopped = np.isin(tokens, stop_ids)
        ends = self._alive & (stopped | (self._limit <= self.length))
        ended = [self._ended(int(row), bool(stopped[row])) for row in np.flatnonzero(ends)]
        self._alive &= ~ends
        return ended

    def compact(self) -> None:
        """Take ended rows out when they are many, and prompts that no row continues any more."""
        alive = int(self._alive.sum())
        if alive == 0:
            self.rows = 0
        elif alive < self.rows * (1 - KEEP_DEAD):
            self._drop_ended_rows()
            self._drop_ended_groups()
            self._place()

    def _ended(self, row: int, finished: bool) -> EndedRow:
        tokens = tuple(self._tokens[row, : self.length].tolist())
        logprobs = tuple(self._logprobs[row, : self.length].tolist())
        return EndedRow(int(self._owner[row]), int(self._row[row]), tokens, logprobs, finished)

    def _drop_ended_rows(self) -> None:
        refill = _Refill(self._alive)
        refill(self._own[..., : self.length - 1, :], axis=2)  # the newest token enters the cache with the next forward
        self.groups, self._owner, self._row, self._keys = map(refill, (self.groups, self._owner, self._row, self._keys))
        self._limit, self._tokens, self._logprobs = map(refill, (self._limit, self._tokens, self._logprobs))
        self.temperatures, self.last_ids, self._prompt_tokens = map(refill, (self.temperatures, self.last_ids, self._prompt_tokens))
        self.rows = refill.count
        self._alive = np.ones(self.rows, dtype=bool)

    def _drop_ended_groups(self) -> None:
        continued = np.bincount(self.groups, minlength=self._prompts.shape[2]) > 0
        refill = _Refill(continued)
        numbers = np.arange(len(continued))
        numbers[refill.last] = refill.holes
        self.groups = numbers[self.groups]
        self._prompts = refill(self._prompts, axis=2)
        self._bias = None if self._bias is None else refill(self._bias)

    def _place(self) -> None:
        """Give each row a slot in a [groups, widest group] grid, so that a group's rows can be one matrix."""
        counts = np.bincount(self.groups)
        width = int(counts.max())
        order = np.argsort(self.groups, kind="stable")
        first = np.cumsum(counts) - counts
        slots = np.empty(self.rows, dtype=np.int64)
        slots[order] = self.groups[order] * width + np.arange(self.rows) - first[self.groups[order]]
        self._slot_count = len(counts) * width
        in_order = self._slot_count == self.rows and bool((slots[:-1] < slots[1:]).all())
        self._slots = None if in_order else torch.from_numpy(slots).to(self.last_ids.device)


class _Refill:
    """Takes the dead out of an array: the last of the living move into their places, so that the others need not be copied."""

    def __init__(self, alive: npt.NDArray[np.bool_]) -> None:
        self.count = int(alive.sum())
        self.holes = np.flatnonzero(~alive[: self.count])
        self.last = self.count + np.flatnonzero(alive[self.count :])

    def __call__(self, array: Any, axis: int = 0) -> Any:
        """The living along `axis` of a numpy array or a tensor, in place."""
        before: tuple[Any, ...] = (slice(None),) * axis
        array[(*before, self.holes)] = array[(*before, self.last)]
        return array[(*before, slice(self.count))]


class CohortsPlan:
    """The rows of several cohorts in one forward, cohort by cohort."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self._cohorts = cohorts
        self._sizes = [cohort.rows for cohort in cohorts]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        parts = zip(
            self._cohorts,
            query.split_with_sizes(self._sizes),
            key.split_with_sizes(self._sizes),
            value.split_with_sizes(self._sizes),
            strict=True,
        )
        outputs = [cohort.attend(layer, q, k, v, scale) for cohort, q, k, v in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def draw_tokens(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens [N] and their log-probabilities at temperature 1 [N], from logits [N, V], by inverting the distribution function.

    Temperature 0 takes the most likely token. A token of probability 0 is never drawn.
    """
    logprobs = logits.log_softmax(-1)
    hot = temperatures > 0
    scaled = logprobs if bool((temperatures == 1).all()) else (logits / torch.where(hot, temperatures, 1.0)[:, None]).log_softmax(-1)
    cumulative = scaled.exp().cumsum(-1)
    threshold = (uniform * cumulative[:, -1])[:, None]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    if not bool(hot.all()):
        tokens = torch.where(hot, tokens, logits.argmax(-1))
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _pad_prompts(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Caches [layers, 2, K, T, D] of different T in one tensor [layers, 2, P, K, longest, D], and the bias [P, 1, 1, longest] that hides
    the padding; None when there is none."""
    longest = max(prompt.shape[3] for prompt in prompts)
    layers, two, kv_heads, _, size = prompts[0].shape
    padded = prompts[0].new_empty(layers, two, len(prompts), kv_heads, longest, size)
    bias = prompts[0].new_zeros(len(prompts), 1, 1, longest)
    for number, prompt in enumerate(prompts):
        padded[:, :, number, :, : prompt.shape[3]] = prompt
        padded[:, :, number, :, prompt.shape[3] :] = 0.0
        bias[number, :, :, prompt.shape[3] :] = -torch.inf
    return padded, bias if bool((bias < 0).any()) else None


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention [B, K, Q, D] and the logarithm of its normaliser, float32 [B, K, Q, 1], which lets two parts be merged."""
    if query.device.type == "cpu":
        output, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias, scale=scale)
        return output, norm.view(*query.shape[:3], 1)
    return plain_attention(query, key, value, bias, scale)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`_attention` written out, for devices whose fused kernels keep the normaliser to themselves."""
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if bias is not None:
        scores = scores + bias
    norm = scores.logsumexp(-1, keepdim=True)
    return (scores - norm).exp().to(value.dtype) @ value, norm
