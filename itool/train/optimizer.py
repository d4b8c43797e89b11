"""Optimisers and learning-rate schedules. An adapter's trainable parameters are all matrices."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from itool.config import OptimizerConfig
from itool.demo.muon import orthogonalise


def build_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over everything, or Muon over the matrices; Muon needs no AdamW beside it because LoRA trains nothing else."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer == "muon":
        return Muon(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True)


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` in float32 and batched over matrices of one shape.

    torch's own iterates in bfloat16, one matrix at a time; on a CPU without bfloat16 instructions that takes longer than the update.
    """

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


def build_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerConfig, updates: int) -> LambdaLR:
    """A schedule over `updates`, stepped once per update."""
    return LambdaLR(optimizer, lambda update: schedule_factor(update, updates, settings))


def schedule_factor(update: int, updates: int, settings: OptimizerConfig) -> float:
    """Share of the learning rate at an update (0-based). No update runs at 0: the first warms up from 1/w, the last decays to 1/(n-w)."""
    warmup = math.ceil(settings.warmup_fraction * updates)
    if update < warmup:
        return (update + 1) / warmup
    remaining = max(updates - update, 0) / max(updates - warmup, 1)
    if settings.schedule == "constant":
        return 1.0
    return remaining if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * remaining))
