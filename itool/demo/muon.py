"""Muon in float32, batched over matrices of one shape.

`torch.optim.Muon` orthogonalises in bfloat16 and one matrix at a time: on a CPU without bfloat16 instructions that costs more
than the forward and backward pass of the demo's model. This one computes the same in a fraction of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon:
    """Momentum, orthogonalised (Jordan et al. 2024), with Nesterov look-ahead and decoupled weight decay. For 2-D parameters only."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        groups: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[matrix.shape].append(matrix)
        self._groups = list(groups.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape) for group in self._groups]
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the `.grad` of every matrix."""
        for group, momenta in zip(self._groups, self._momenta, strict=True):
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            momenta.lerp_(gradients, 1 - self._momentum)
            direction = orthogonalise(gradients.lerp(momenta, self._momentum))
            scale = learning_rate * max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
            for matrix, change in zip(group, direction, strict=True):
                matrix.mul_(1 - learning_rate * self._weight_decay).add_(change, alpha=-scale)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrix of each [M, N] in a [B, M, N] stack, by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.transpose(-2, -1) if tall else matrices
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x
