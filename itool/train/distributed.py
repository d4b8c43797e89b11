"""Several processes that train one adapter: how they find each other, share an update out and agree.

Every worker knows the whole plan. It takes its share of an update, divides its losses by the counts of the *whole* update, and once per
update the gradients of all shares are added up. So the sum is the gradient that one process computes, whatever the shares are (empty,
or of unequal length), and every worker then takes the same step.

Differs from DistributedDataParallel: that averages over workers instead of adding up, sums after every bucket instead of once, wants
every worker to have as many buckets as the others, and needs the forward pass to go through its wrapper. A LoRA gradient is small.

A process that torchrun did not start is alone: nothing is exchanged, and torch.distributed stays unused.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from itool.artifacts.process import worker_count, worker_rank
from itool.errors import ConfigError, DependencyError

_PLACE = re.compile(r"^\[[^\]]*\]\s*")  # gloo begins with the line of its source


@dataclass(frozen=True)
class Workers:
    """This process (`rank`, from 0) among `count`. Methods that exchange something are called by all workers, in the same order.

    They raise DependencyError when another worker is gone, or silent for longer than the time given to `join_workers`.
    """

    rank: int = 0
    count: int = 1

    def share(self, lengths: Sequence[int]) -> list[int]:
        """Indices of this worker's part of an update: dealt out in order of length, so that shares differ by one longest row at most."""
        if self.count == 1:
            return list(range(len(lengths)))
        return sorted(range(len(lengths)), key=lambda index: (lengths[index], index))[self.rank :: self.count]

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value added up over the workers; NaN when it is NaN for one of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        with _exchange():
            dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def any(self, flag: bool) -> bool:
        """Whether the flag is set for one worker at least."""
        return self.sum([float(flag)]) != [0.0]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of the trained parameters over the workers; one whose share was empty adds nothing."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _exchange():
            dist.all_reduce(flat)
        for parameter, part in zip(trained, torch.split(flat, [parameter.numel() for parameter in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def require_same(self, what: str, value: object) -> None:
        """Raise DependencyError unless every worker has the same value: they would train apart from each other without a sign."""
        if self.count == 1:
            return
        values: list[object] = [None] * self.count
        with _exchange():
            dist.all_gather_object(values, value)
        if any(other != value for other in values):
            raise DependencyError(f"the {self.count} workers do not agree on {what}: {values}", remedy="Start all of them again")

    def seed_update(self, seed: int, update: int) -> None:
        """Give this worker's dropout a stream of its own in each update, so that no random state has to outlive a checkpoint."""
        if self.count > 1:
            torch.manual_seed(random.Random(f"{seed}:{update}:{self.rank}").getrandbits(63))


ALONE = Workers()


def join_workers(*, timeout_seconds: float) -> Workers:
    """The workers that torchrun's environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) names; this process alone without it.

    `timeout_seconds` bounds every later wait, too. Tensors in main memory travel through gloo, those on GPUs through NCCL.
    Raises ConfigError when the environment is incomplete, DependencyError when the others do not come.
    """
    if worker_count() == 1:
        return ALONE
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        with _exchange():
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE is {worker_count()}, but: {error}", remedy="Start the stage through torchrun") from None
    return Workers(dist.get_rank(), dist.get_world_size())


def leave_workers() -> None:
    """Wait until every worker has come here, and part. Raises DependencyError when one ended before."""
    if dist.is_initialized():
        Workers(dist.get_rank(), dist.get_world_size()).sum([0.0])
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    """A broken connection, a time-out and a rendezvous that fails are all RuntimeErrors of torch."""
    try:
        yield
    except RuntimeError as error:
        reason = _PLACE.sub("", str(error)).split(". ")[0]
        what = f"worker {worker_rank()} lost the others: {reason}"
        raise DependencyError(what, remedy="Their logs say why; start all of them again") from None
