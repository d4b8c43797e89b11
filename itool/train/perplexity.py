"""Perplexity of ground-truth responses, Eq. (4): which examples surprise the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

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
    values = [0.0] * len(sequences)
    done = 0
    model.eval()
    with torch.inference_mode():
        for group in reversed(bucket([len(sequence) for sequence in sequences], batch_tokens, pass_cost_tokens=pass_cost_tokens(model))):
            batch = batch_sequences([sequences[index] for index in group])
            lengths = [len(sequences[index].response_ids) for index in group]
            for index, logps in zip(group, torch.split(response_logps(model, batch).cpu(), lengths), strict=True):
                values[index] = perplexity(logps.tolist())
            done += len(group)
            on_progress(done, len(sequences))
    return values
