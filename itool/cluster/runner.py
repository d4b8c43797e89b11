"""What runs stages: one small protocol with two implementations, processes on this machine and Kubernetes Jobs.

The controller decides, a runner does. A runner knows attempts and their exit codes; it never looks at artifacts, and it never decides
whether to try again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from itool.stages import StageId

Phase = Literal["pending", "running", "succeeded", "failed"]

NOT_BEGUN = "stopped before it began"
"""The reason of an attempt that was stopped while its process was still to come."""


@dataclass(frozen=True, order=True)
class Task:
    """One piece of work: a stage, or one shard of it, for exactly one artifact key (other settings are other work).

    On Kubernetes one Job does all shards of a stage, so the whole stage is the task.
    """

    stage: StageId
    key: str
    shard: int = 0
    shards: int = 1

    @property
    def label(self) -> str:
        """Name for files and objects, `i2-generate-0`: a DNS label without the attempt."""
        name = f"i{self.stage.iteration}-{self.stage.name}"
        return f"{name}-{self.shard}" if self.shards > 1 else name


@dataclass(frozen=True)
class Attempt:
    """One try of a task. `reason` says why it failed or what it waits for, in one line; times are seconds since the epoch."""

    number: int
    phase: Phase
    exit_code: int | None = None
    reason: str = ""
    started_at: float = 0.0
    ended_at: float | None = None
    peak_memory_bytes: int = 0
    shards_done: int | None = None
    """How many shards have ended well, where one attempt does all of them."""
    longest_pod_seconds: float | None = None
    """How long the longest of its pods ran, as far as is known; None of a process."""
    past: bool = False
    """Over before this controller started: it counts for numbers, not as a failure."""
    final: bool = False
    """The runner knows that another try would end in the same way."""

    @property
    def over(self) -> bool:
        """Whether it has ended, either way."""
        return self.phase in ("succeeded", "failed")

    @property
    def seconds_at_once(self) -> float:
        """How long it worked without being started again."""
        if self.longest_pod_seconds is not None:
            return self.longest_pod_seconds
        return self.ended_at - self.started_at if self.ended_at is not None else 0.0


Attempts = Mapping[Task, tuple[Attempt, ...]]


class Runner(Protocol):
    """Starts attempts and knows how they fare."""

    def start(self, task: Task, attempt: int) -> None:
        """Start one attempt and return at once."""

    def state(self) -> Attempts:
        """Every attempt that this runner knows, oldest first per task."""

    def logs(self, task: Task, attempt: int, offset: int = 0) -> bytes:
        """What the attempt has written (standard output and error) from byte `offset` on; empty when there is nothing yet."""

    def stop(self, task: Task, attempt: int, reason: str) -> None:
        """Ask one attempt to save a checkpoint and end; returns at once, and may be asked again."""

    def cancel(self, grace_seconds: float) -> None:
        """Ask every running attempt to save a checkpoint and stop; kill what still runs after the grace period; return when all ended."""

    def detach(self, grace_seconds: float) -> None:
        """The controller goes away: leave running attempts to themselves where they live on without it, else stop them as `cancel` does."""

    def settle(self, seconds: float) -> None:
        """Wait, not for longer than this, until attempts that have written their artifact have ended too."""

    def close(self) -> None:
        """Give back what the runner holds."""
