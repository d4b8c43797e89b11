"""Muon in float32, batched over matrices of one shape: what training an adapter and pre-training the demo's base model share.

`torch.optim.Muon` orthogonalises in bfloat16 and one matrix at a time: on a CPU without bfloat16 instructions that costs more than the
forward and backward pass of the demo's model. This one computes the same in a fraction of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with Nesterov look-ahead and decoupled weight decay. For 2-D parameters only."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch's signature; nobody passes a closure
        """One update from the gradients of every matrix."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._step_shape(parameters, group)

    def _step_shape(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        for parameter in parameters:
            self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momenta = torch.stack([self.state[parameter]["momentum"] for parameter in parameters]).lerp_(gradients, 1 - group["momentum"])
        changes = orthogonalise(gradients.lerp(momenta, group["momentum"]))
        scale = group["lr"] * max(1.0, parameters[0].shape[0] / parameters[0].shape[1]) ** 0.5
        for parameter, momentum, change in zip(parameters, momenta, changes, strict=True):
            self.state[parameter]["momentum"].copy_(momentum)
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix of each [M, N] in a [B, M, N] stack, by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.transpose(-2, -1) if tall else matrices
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x
