"""Optimisers and learning-rate schedules. An adapter's trainable parameters are all matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from itool.config import OptimizerConfig
from itool.muon import Muon


def build_optimizer(parameters: Iterable[torch.nn.Parameter], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over everything, or Muon over the matrices; Muon needs no AdamW beside it because LoRA trains nothing else."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer == "muon":
        return Muon(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True)


def build_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerConfig, updates: int) -> LambdaLR:
    """A schedule over `updates`, stepped once per update."""
    return LambdaLR(optimizer, lambda update: schedule_factor(update, updates, settings))


def schedule_factor(update: int, updates: int, settings: OptimizerConfig) -> float:
    """Share of the learning rate at an update (0-based). No update runs at 0: warming up begins at 1/w of the rate, w the updates that it
    takes, and the last update is the one before a decay reaches 0.
    """
    warmup = math.ceil(settings.warmup_fraction * updates)
    if update < warmup:
        return (update + 1) / warmup
    remaining = max(updates - update, 0) / max(updates - warmup, 1)
    if settings.schedule == "constant":
        return 1.0
    return remaining if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * remaining))
