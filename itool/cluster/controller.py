"""The loop around `decide.next_actions`: observe, decide, apply, sleep.

It holds nothing that cannot be lost: killed between any two steps and started again, it sees the same artifacts and ends in the same
state. Whether it starts processes or Kubernetes Jobs is the runner's affair.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from itool.artifacts import resolve as artifacts
from itool.artifacts.manifest import manifest_key
from itool.artifacts.resolve import Resolution
from itool.artifacts.store import Store
from itool.cluster.decide import Action, Fail, Finish, Observed, RetryRules, StartStage, StopStage, Wait, next_actions
from itool.cluster.decide_serving import Serve, StopServing
from itool.cluster.leases import Lease, LeaseLost
from itool.cluster.progress import NoWatcher, Progress, ProgressTail, Watcher
from itool.cluster.runner import Attempt, Attempts, Runner, Task
from itool.commands import itoolctl
from itool.config import RunConfig
from itool.errors import DependencyError, InputError, Interrupted, ItoolError
from itool.logs import get_logger
from itool.stages import StageId

if TYPE_CHECKING:
    from itool.cluster.serving import Serving

log = get_logger(__name__)

CONFIG_NAME = "config.yaml"
STOP_GRACE_SECONDS = 60.0
SETTLE_SECONDS = 30.0
ASK_SECONDS = 1.0
TELLING_SECONDS = 5.0


class StageFailed(ItoolError):  # noqa: N818 - says what happened, like the exit code that it carries
    """A stage ended in a way that no retry helps; the exit code is the stage's."""

    def __init__(self, failure: Fail) -> None:
        super().__init__(f"{failure.stage} failed: {failure.message}")
        self.exit_code = failure.exit_code


@dataclass
class Controller:
    """One run's controller. `stop_requested` is asked in every round: True stops the stages and raises Interrupted.

    `serving` is there where the controller runs vLLM itself, or has one of earlier settings to stop. `clock` is the time of day, `awake`
    counts only seconds in which the machine does not sleep.
    """

    config: RunConfig
    store: Store
    runner: Runner
    lease: Lease
    watcher: Watcher = field(default_factory=NoWatcher)
    serving: Serving | None = None
    stop_requested: Callable[[], bool] = lambda: False
    rules: RetryRules = field(default_factory=RetryRules)
    poll_seconds: float = 0.05
    clock: Callable[[], float] = time.time
    awake: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _known: artifacts.StoreListing | None = None
    _resolutions: dict[StageId, Resolution] | None = None
    _seen: frozenset[tuple[Task, int]] = frozenset()
    _asked_at: float = float("-inf")
    _reported: set[tuple[Task, int]] = field(default_factory=set)
    _decided_at: dict[Action, float] = field(default_factory=dict)
    _told: set[Action] = field(default_factory=set)
    _down_since: float | None = None
    _shards_done: tuple[Task, int] | None = None
    _tail: ProgressTail = field(default_factory=ProgressTail)

    def run(self) -> dict[StageId, Resolution]:
        """Work until every artifact is there, and return where they stand. The lease must be held.

        Raises StageFailed, Interrupted (75) when asked to stop, LeaseLost, DependencyError when store or cluster are away for too long.
        """
        try:
            while not self.step():
                self.sleep(self.poll_seconds)
            self.runner.settle(SETTLE_SECONDS)
        except LeaseLost:  # a look at Jobs judges them, which is another's affair now
            self.runner.detach(STOP_GRACE_SECONDS)
            raise
        except BaseException:
            self.runner.detach(STOP_GRACE_SECONDS)
            self._report_last()
            raise
        self._report_last()
        assert self._resolutions is not None
        return self._resolutions

    def step(self) -> bool:
        """One round; True when the run is finished. A store or a cluster that is down makes a round that did nothing."""
        try:
            if self.stop_requested() or self.lease.renew():
                self.watcher.stopping()
                raise Interrupted(f"run {self.config.run} was asked to stop")
            actions = next_actions(self._observe())
            self._announce(actions)
            self._apply(actions)
        except LeaseLost:
            raise
        except DependencyError as error:
            self._wait_out(error)
            return False
        self._down_since = None
        return any(isinstance(action, Finish) for action in actions)

    def _report_last(self) -> None:
        """Tell what has ended since the last look, which is not worth an error of its own."""
        with contextlib.suppress(ItoolError):
            self._report_attempts(self.runner.state())

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Fail):
                raise StageFailed(action)
            if isinstance(action, StartStage):
                self.runner.start(action.task, action.attempt)
            if isinstance(action, StopStage):
                self.runner.stop(action.task, action.attempt, action.reason)
            if self.serving and isinstance(action, Serve):
                self.serving.serve(action)
            if self.serving and isinstance(action, StopServing):
                self.serving.stop(action)

    def _observe(self) -> Observed:
        """Attempts first, artifacts second: what an ended attempt has written is then surely seen."""
        attempts = self.runner.state()
        self._report_attempts(attempts)
        ended = frozenset((task, attempt.number) for task, tries in attempts.items() for attempt in tries if attempt.over)
        if self._resolutions is None:
            self._look_at_store(None)
        else:
            news = {task.stage for task, _ in ended - self._seen} | self._written_early(attempts)
            open_stages = {stage for stage in news if stage in self._resolutions and not self._resolutions[stage].done}
            if open_stages:
                self._look_at_store(open_stages)
        self._seen = ended
        assert self._resolutions is not None
        serving = self.serving.state() if self.serving else None
        return Observed(self.config, self._resolutions, attempts, self.clock(), self.rules, serving)

    def _look_at_store(self, stages: Collection[StageId] | None) -> None:
        """Read the store, all of the run or what belongs to some stages."""
        known = artifacts.observe(self.store, self.config, known=self._known, stages=stages)
        resolutions = artifacts.resolve_observed(self.config, known, settled=self._resolutions)
        self._known, self._resolutions = artifacts.forget_done(self.config, known, resolutions)

    def _written_early(self, attempts: Attempts) -> set[StageId]:
        """Stages in a cluster whose manifest is there although their pod has not ended: with torch loaded that takes seconds more."""
        now = self.clock()
        if self.config.runtime.backend == "local" or now - self._asked_at < ASK_SECONDS:
            return set()
        self._asked_at = now
        running = {task.stage for task, tries in attempts.items() if tries[-1].phase == "running"}
        return {stage for stage in running if self._has_manifest(stage)}

    def _has_manifest(self, stage: StageId) -> bool:
        found = self._resolutions.get(stage) if self._resolutions else None
        if found is None or found.done or found.prefix is None:
            return False
        return self.store.size(manifest_key(found.prefix)) is not None

    def _wait_out(self, error: DependencyError) -> None:
        """Store and cluster may be away for a while, not counting a laptop's sleep; what runs is left alone meanwhile."""
        now = self.awake()
        if self._down_since is None:
            self._down_since = now
            log.warning("waiting for a service", error=str(error))
        if now - self._down_since >= self.rules.dependency_patience_seconds:
            raise error
        self.sleep(1.0)

    def _announce(self, actions: list[Action]) -> None:
        """Tell every decision once, a pause when it begins. What is only waited for is told when it lasts."""
        now = self.clock()
        decided = {_without_time_left(action): action for action in actions}
        self._decided_at = {key: self._decided_at.get(key, now) for key in decided}
        for key, action in decided.items():
            passing = isinstance(action, Wait) and action.seconds is None
            if key not in self._told and (not passing or now - self._decided_at[key] >= TELLING_SECONDS):
                self.watcher.decided(action)
                self._told.add(key)
        self._told &= self._decided_at.keys()

    def _report_attempts(self, attempts: Attempts) -> None:
        if len(self._reported) > len(attempts):  # Jobs have expired: nobody sees their attempts again
            self._reported &= {(task, attempt.number) for task, tries in attempts.items() for attempt in tries}
        for task, tries in attempts.items():
            last = tries[-1]
            if last.past:
                continue
            if last.over and (task, last.number) not in self._reported:
                self._reported.add((task, last.number))
                self._tail.forget(task, last.number)
                self.watcher.ended(task, last)
            elif last.phase == "running":
                progress = self._progress(task, last)
                if progress is not None:
                    self.watcher.progressed(task, progress)

    def _progress(self, task: Task, attempt: Attempt) -> Progress | None:
        """How far a running attempt is, when that is news: what it says itself, or how many of its shards are done."""
        if attempt.shards_done is None:
            return self._tail.read(self.runner, task, attempt.number)
        if self._shards_done == (task, attempt.shards_done):
            return None
        self._shards_done = (task, attempt.shards_done)
        return Progress(attempt.shards_done, self.config.search.shards, "shards")


def _without_time_left(action: Action) -> Action:
    """What makes a decision the same as the last round's: of a pause not how much of it is left."""
    return replace(action, seconds=0.0) if isinstance(action, Wait) and action.seconds is not None else action


def rules_of(config: RunConfig) -> RetryRules:
    """The patience that the configuration asks for. In a cluster the Job has tried again already when it fails."""
    return RetryRules(max_attempts=1 if config.runtime.backend == "kubernetes" else config.runtime.max_attempts)


def config_key(run: str) -> str:
    """Where the configuration lies beside the artifacts."""
    return f"{run}/{CONFIG_NAME}"


def require_reused_run(store: Store, config: RunConfig) -> None:
    """Raise InputError when `reuse_from` names a run that was never started: all would silently be made anew."""
    if config.reuse_from and config.reuse_from != config.run and store.size(config_key(config.reuse_from)) is None:
        what = f"reuse_from = {config.reuse_from!r}: there is no such run in {store.root}"
        raise InputError(what, remedy=f"{itoolctl('runs', store.root)} lists them; or leave the setting out")


def store_config(store: Store, config: RunConfig) -> None:
    """Put the configuration beside the artifacts, unless the same is there already."""
    key, text = config_key(config.run), config.as_yaml().encode()
    if store.size(key) != len(text) or store.read(key) != text:
        store.write(key, text)
