"""Perplexity of ground-truth responses, Eq. (4): which examples surprise the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from itool.train.losses import perplexity
from itool.train.model import pass_cost_tokens, response_logps
from itool.train.sequences import TokenSequence, batch_sequences, bucket


def perplexities(
    model: Any,
    sequences: Sequence[TokenSequence],
    *,
    batch_tokens: int,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[float]:
    """Eq. (4) for each sequence, in the order given; at most `batch_tokens` padded tokens in one forward pass.

    Batches hold sequences of nearly one length, so that padding costs next to nothing, longest first, so that a shortage of memory
    shows at once. `on_progress(done, total)` counts sequences.
    """
    cost = pass_cost_tokens(model, gradients=False)
    groups = bucket([len(sequence) for sequence in sequences], batch_tokens, pass_cost_tokens=cost)[::-1]
    order: list[int] = []
    found: list[Tensor] = []
    model.eval()
    with torch.inference_mode():
        for group in groups:
            found.append(response_logps(model, batch_sequences([sequences[index] for index in group])))  # a GPU computes on meanwhile
            order += group
            on_progress(len(order), len(sequences))
    lengths = [len(sequences[index].response_ids) for index in order]
    logps = torch.split(torch.cat(found).cpu(), lengths) if found else ()
    values = dict(zip(order, (perplexity(part.tolist()) for part in logps), strict=True))
    return [values[index] for index in range(len(sequences))]
