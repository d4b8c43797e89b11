"""Perplexity of ground-truth responses, Eq. (4): which examples surprise the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from itool.data.selection import perplexity
from itool.train.model import pass_cost_tokens, response_logps
from itool.train.sequences import TokenSequence, batch_sequences, bucket


def perplexities(
    model: Any,
    sequences: Sequence[TokenSequence],
    *,
    batch_tokens: int,
    found: dict[int, float] | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[float]:
    """Eq. (4) for each sequence, in the order given; at most `batch_tokens` padded tokens in one forward pass.

    Batches hold sequences of nearly one length, so that padding costs next to nothing, longest first, so that a shortage of memory
    shows at once. `found` holds values by position: what is known from an earlier call with these sequences is not computed again, and
    every batch's values join it before `on_progress(done, total)`, which counts sequences, is called.
    """
    cost = pass_cost_tokens(model, gradients=False)
    groups = bucket([len(sequence) for sequence in sequences], batch_tokens, pass_cost_tokens=cost)[::-1]
    values = {} if found is None else found
    model.eval()
    with torch.inference_mode():
        for group, logps in _read_one_late(model, sequences, [group for group in groups if not values.keys() >= set(group)]):
            parts = torch.split(logps, [len(sequences[index].response_ids) for index in group])
            values |= zip(group, (perplexity(part.tolist()) for part in parts), strict=True)
            on_progress(len(values), len(sequences))
    return [values[index] for index in range(len(sequences))]


def _read_one_late(model: Any, sequences: Sequence[TokenSequence], groups: Iterable[list[int]]) -> Iterator[tuple[list[int], Tensor]]:
    """Each group and the log P of its response tokens (N), when the next group's pass is under way: a GPU computes while one is read.

    A GPU does its work in order: a copy to memory that is asked for behind the next pass would wait for that pass too.
    """
    before: tuple[list[int], Tensor, torch.cuda.Event | None] | None = None
    for group in groups:
        logps = response_logps(model, batch_sequences([sequences[index] for index in group]))
        copy = logps.to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream(logps.device).record_event() if logps.is_cuda else None
        if before is not None:
            yield _when_copied(*before)
        before = group, copy, copied
    if before is not None:
        yield _when_copied(*before)


def _when_copied(group: list[int], copy: Tensor, copied: torch.cuda.Event | None) -> tuple[list[int], Tensor]:
    if copied is not None:
        copied.synchronize()
    return group, copy
