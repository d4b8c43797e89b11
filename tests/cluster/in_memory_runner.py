"""A runner that does a stage's work in the same process, one slice per look, so that a test can stop the world anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from itool.artifacts.manifest import Manifest
from itool.artifacts.resolve import resolve
from itool.artifacts.store import Store
from itool.cluster.runner import Attempt, Attempts, Task
from itool.config import RunConfig
from itool.stages import StageId, settings_of
from tests.cluster.in_memory_cluster import Killed, commit_rows


@dataclass
class InMemoryRunner:
    """`failures` gives the exit codes of coming attempts by stage name; every attempt takes `looks` calls of `state`."""

    store: Store
    config: RunConfig
    failures: dict[str, list[int]] = field(default_factory=dict)
    started: list[tuple[StageId, int, int]] = field(default_factory=list)
    die_after: int | None = None
    _attempts: dict[Task, list[Attempt]] = field(default_factory=dict)

    def start(self, task: Task, attempt: int) -> None:
        self._tick()
        self.started.append((task.stage, task.shard, attempt))
        self._attempts.setdefault(task, []).append(Attempt(attempt, "running"))

    def state(self) -> Attempts:
        self._tick()
        for task, attempts in self._attempts.items():
            if not attempts[-1].over:
                attempts[-1] = self._finish(task, attempts[-1])
                break
        return {task: tuple(attempts) for task, attempts in self._attempts.items()}

    def logs(self, task: Task, attempt: int, offset: int = 0) -> bytes:
        return b""

    def stop(self, task: Task, attempt: int, reason: str) -> None:
        """Nothing is left over."""

    def cancel(self, grace_seconds: float) -> None:
        """A killed controller's stages are gone with it."""

    def detach(self, grace_seconds: float) -> None:
        """As for `cancel`."""

    def settle(self, seconds: float) -> None:
        """What has written its artifact has ended."""

    def close(self) -> None:
        """Nothing is held."""

    def _finish(self, task: Task, attempt: Attempt) -> Attempt:
        codes = self.failures.get(task.stage.name, [])
        code = codes.pop(0) if codes else 0
        if code == 0:
            self._commit(task)
        return Attempt(attempt.number, "failed" if code else "succeeded", code, "told to" if code else "", 0.0, 0.0)

    def _commit(self, task: Task) -> None:
        resolution = resolve(self.store, self.config)[task.stage]
        assert resolution.prefix is not None
        now = datetime.now(UTC)
        draft = Manifest(
            run=self.config.run, iteration=task.stage.iteration, stage=task.stage.name, key=task.key, files={}, started=now, ended=now,
            shard=task.shard, shards=task.shards, inputs=dict(resolution.inputs), settings=settings_of(self.config, task.stage.name),
        )  # fmt: skip
        commit_rows(self.store, resolution.prefix, draft, self._tick)

    def _tick(self) -> None:
        if self.die_after is not None:
            if self.die_after == 0:
                raise Killed
            self.die_after -= 1
