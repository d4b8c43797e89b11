"""What to do next, as a pure function: what was observed goes in, actions that a test can read come out.

Observed are the artifacts in the store and the attempts that the runner knows. Nothing else is remembered, so a controller that was
killed anywhere and started again decides the same.

Where the controller runs vLLM itself, what vLLM serves is part of the decision (`decide_serving.py`).

Retry contract by exit code: 0 done; 64, 65 and 76 never again; 69 again with growing pauses until the service has been away for
`dependency_patience_seconds` (an attempt that did further shards had it meanwhile, and one that ran longer than it can wait in vain, in
a cluster a pod of it); 75 again at once and without limit, since all that take long have saved a checkpoint; anything else up to
`max_attempts` times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from itool.artifacts.resolve import Resolution
from itool.cluster.decide_serving import Serve, ServingState, StopServing, beside_stage, stop
from itool.cluster.runner import Attempt, Attempts, Task
from itool.config import RunConfig
from itool.errors import DOCUMENTED_CODES, NEVER_AGAIN, DependencyError, InputError, Interrupted, ItoolError
from itool.stages import StageId, asks_policy, may_overlap, starts_own_vllm

LONGEST_PAUSE_SECONDS = 30.0
MOST_REPETITIONS = 10
"""More than a policy's client makes of a request that is not answered."""


@dataclass(frozen=True)
class RetryRules:
    """How patient the controller is."""

    max_attempts: int = 3
    dependency_patience_seconds: float = 300.0


@dataclass(frozen=True)
class Observed:
    """Everything that a decision may depend on: artifacts, attempts, vLLM's pods, the time, and how patient to be.

    `serving` is None where the controller runs no vLLM: stages on this machine start their own, or `policy.url` names one. It is there
    as long as earlier settings of the run have left one.
    """

    config: RunConfig
    resolutions: Mapping[StageId, Resolution]
    attempts: Attempts = field(default_factory=dict)
    now: float = 0.0
    rules: RetryRules = RetryRules()
    serving: ServingState | None = None


@dataclass(frozen=True)
class StartStage:
    """Start an attempt; from the second on it is a retry, and `reason` says of what."""

    task: Task
    attempt: int
    reason: str


@dataclass(frozen=True)
class StopStage:
    """End an attempt that an earlier controller left running and that makes nothing of use any more."""

    task: Task
    attempt: int
    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do before something changes, or before `seconds` have passed."""

    reason: str
    seconds: float | None = None


@dataclass(frozen=True)
class Fail:
    """The run cannot go on. `exit_code` is the stage's when it is documented, else 1."""

    stage: StageId
    exit_code: int
    message: str


@dataclass(frozen=True)
class Finish:
    """Every artifact of the run is there."""

    reason: str


Action = StartStage | StopStage | Wait | Fail | Finish | Serve | StopServing


_NOT_A_STAGE = Resolution(StageId(0, "prepare"), "missing", "")


def next_actions(observed: Observed) -> list[Action]:
    """What to do now: advance the stages whose turn it is. Shards of a stage run side by side unless each starts its own vLLM."""
    stale, stages = _stop_stale(observed), stages_in_turn(observed.config, observed.resolutions)
    if not stages:
        reason = "every artifact is there"
        return [*stale, *(stop(observed.serving, reason) if observed.serving else ()), Finish(reason)]
    by_stage = [_advance(observed, stage) for stage in stages]
    for actions in by_stage:
        if any(isinstance(action, Fail) for action in actions):
            return [*stale, *actions]
    first, *others = by_stage
    beside = [action for actions in others for action in actions if not isinstance(action, Serve | StopServing)]  # the first says it
    return [*stale, *first, *beside]


def stages_in_turn(config: RunConfig, resolutions: Mapping[StageId, Resolution]) -> list[StageId]:
    """The first stage that is not done; with `runtime.overlap_evaluation` a second one beside an evaluation, about the same policy."""
    missing = [stage for stage, found in resolutions.items() if not found.done][:2]
    overlap = [stage.name == "evaluate" for stage in missing] == [True, False] and all(may_overlap(config, stage) for stage in missing)
    return missing if overlap else missing[:1]


def _stop_stale(observed: Observed) -> list[Action]:
    """Attempts of other settings than the run has now. They would hold the GPU that the run waits for."""
    return [
        StopStage(task, tries[-1].number, f"{task.stage} has other settings or inputs now")
        for task, tries in observed.attempts.items()
        if not tries[-1].over and observed.resolutions.get(task.stage, _NOT_A_STAGE).key != task.key
    ]


def _advance(observed: Observed, stage: StageId) -> list[Action]:
    """A stage's own actions, and what vLLM has to do for it."""
    actions = _advance_tasks(observed, stage, observed.resolutions[stage])
    return _beside_serving(observed, observed.serving, stage, actions) if observed.serving else actions


def _beside_serving(observed: Observed, serving: ServingState, stage: StageId, actions: list[Action]) -> list[Action]:
    """The stage's actions and vLLM's. What vLLM waits for keeps the stage from starting; a stage that runs is left alone."""
    if any(isinstance(action, Fail) for action in actions):
        return [*stop(serving, f"{stage} failed"), *actions]
    if not observed.config.has_managed_serving:
        return [*_stop_unwanted(observed, serving), *actions]
    beside = beside_stage(observed.config, observed.resolutions, serving, stage, observed.now)
    if any(isinstance(action, StartStage) for action in actions):
        if beside.failure:
            return [*stop(serving, f"{stage} failed"), Fail(stage, *beside.failure)]
        return [*beside.actions, *([Wait(f"{stage} waits for {beside.waits_for}")] if beside.waits_for else actions)]
    if beside.waits_for:
        actions = [
            replace(action, reason=f"{action.reason}; waits for {beside.waits_for}") for action in actions if isinstance(action, Wait)
        ]
    return [*beside.actions, *actions]


def _stop_unwanted(observed: Observed, serving: ServingState) -> tuple[StopServing, ...]:
    """Stop a vLLM that earlier settings have left, unless a stage runs that may have been started with its address."""
    asked = any(not tries[-1].over and asks_policy(observed.config, task.stage.name) for task, tries in observed.attempts.items())
    return () if asked else stop(serving, "the settings want no vLLM here")


def _advance_tasks(observed: Observed, stage: StageId, resolution: Resolution) -> list[Action]:
    if resolution.state == "damaged":
        return [Fail(stage, InputError.exit_code, resolution.reason)]
    if resolution.key is None:
        return [Wait(f"{stage} waits: {resolution.reason}", 1.0)]
    shards = 1 if observed.config.runtime.backend == "kubernetes" else resolution.shards  # one Job does all shards
    tasks = [Task(stage, resolution.key, shard, shards) for shard in range(shards)]
    open_tasks = [task for task in tasks if not _is_finished(observed, task, resolution.shards_done)]
    if not open_tasks:
        return [_without_artifact(observed, tasks[0])]
    actions = [_advance_task(observed, task, resolution.reason) for task in open_tasks]
    failures: list[Action] = [action for action in actions if isinstance(action, Fail)]
    if failures:
        return failures[:1]
    starts: list[Action] = [action for action in actions if isinstance(action, StartStage)]
    if starts_own_vllm(observed.config):
        starts = [] if any(_is_active(observed, task) for task in open_tasks) else starts[:1]
    return starts or [_soonest([action for action in actions if isinstance(action, Wait)])]


def _is_active(observed: Observed, task: Task) -> bool:
    attempts = observed.attempts.get(task, ())
    return bool(attempts) and not attempts[-1].over


def _is_finished(observed: Observed, task: Task, stored: tuple[int, ...]) -> bool:
    attempts = observed.attempts.get(task, ())
    if attempts and not attempts[-1].past:
        return attempts[-1].phase == "succeeded"
    return task.shards > 1 and task.shard in stored


def _advance_task(observed: Observed, task: Task, reason: str) -> Action:
    attempts = observed.attempts.get(task, ())
    if not attempts or attempts[-1].past:
        return StartStage(task, attempts[-1].number + 1 if attempts else 1, reason)
    last = attempts[-1]
    if last.phase == "failed":
        return _after_failure(observed, task, tuple(attempt for attempt in attempts if not attempt.past))
    return Wait(f"{task.label} {last.phase}{': ' + last.reason if last.reason else ''}")


def _after_failure(observed: Observed, task: Task, attempts: tuple[Attempt, ...]) -> Action:
    """The retry contract of the module's docstring."""
    last, rules = attempts[-1], observed.rules
    code = last.exit_code if last.exit_code is not None else ItoolError.exit_code
    why = f"attempt {last.number} ended with exit code {code}{': ' + last.reason if last.reason else ''}"
    if code == Interrupted.exit_code:
        return StartStage(task, last.number + 1, why)
    if code in NEVER_AGAIN or last.final:
        return Fail(task.stage, _documented(code), last.reason or why)
    ended_at = last.ended_at if last.ended_at is not None else observed.now
    if code == DependencyError.exit_code:
        trailing = _one_outage(attempts, code, _longest_in_vain(observed))
        first_ended_at = trailing[0].ended_at if trailing[0].ended_at is not None else ended_at
        if ended_at - first_ended_at >= rules.dependency_patience_seconds:
            return Fail(task.stage, code, last.reason or why)
        return _retry_after(observed, task, last, why, pause=2.0 ** (len(trailing) - 1))
    counted = [attempt for attempt in attempts if attempt.exit_code not in (Interrupted.exit_code, DependencyError.exit_code)]
    if len(counted) >= rules.max_attempts:
        tries = f" (gave up after {len(counted)} attempts)" if len(counted) > 1 else ""
        return Fail(task.stage, _documented(code), f"{last.reason or why}{tries}")
    return _retry_after(observed, task, last, why, pause=0.5 * 2.0 ** (len(counted) - 1))


def _retry_after(observed: Observed, task: Task, last: Attempt, why: str, *, pause: float) -> Action:
    ended_at = last.ended_at if last.ended_at is not None else observed.now
    left = ended_at + min(pause, LONGEST_PAUSE_SECONDS) - observed.now
    if 0 < left < 2 * LONGEST_PAUSE_SECONDS:  # more is no pause: the clock was set back since
        return Wait(f"{task.label} is tried again: {why}", left)
    return StartStage(task, last.number + 1, why)


def _without_artifact(observed: Observed, task: Task) -> Action:
    """Every task ended well and still there is no artifact: shards that were never joined, or a manifest that was removed."""
    attempts = observed.attempts.get(task, ())
    number = attempts[-1].number + 1 if attempts else 1
    if len([attempt for attempt in attempts if attempt.phase == "succeeded" and not attempt.past]) >= observed.rules.max_attempts:
        return Fail(task.stage, ItoolError.exit_code, f"{task.stage} ends with exit code 0 but leaves no artifact {task.key}")
    return StartStage(task, number, "finished without a manifest: join again")


def _one_outage(attempts: tuple[Attempt, ...], code: int, longest_in_vain: float) -> list[Attempt]:
    """The last attempts that ended with `code`, from the latest one that did or ran for so much that the service was there meanwhile."""
    trailing: list[Attempt] = []
    for index, attempt in reversed(list(enumerate(attempts))):
        if attempt.exit_code != code:
            break
        trailing.insert(0, attempt)
        most_done = max((before.shards_done or 0 for before in attempts[:index]), default=0)
        if attempt.seconds_at_once > longest_in_vain or (attempt.shards_done or 0) > most_done:
            break
    return trailing


def _longest_in_vain(observed: Observed) -> float:
    """How long a stage's process can run while a service is away: every wait that the configuration allows.

    Rather too long than too short: a stage that fails slowly would be tried again without an end.
    """
    config = observed.config
    startup = config.policy.startup_seconds
    if config.runtime.backend == "kubernetes":
        startup = max(startup, config.kubernetes.serving.startup_seconds)
    waits = observed.rules.dependency_patience_seconds + startup + config.runtime.worker_timeout_seconds
    return waits + MOST_REPETITIONS * config.policy.timeout_seconds


def _soonest(waits: list[Wait]) -> Wait:
    timed = [wait for wait in waits if wait.seconds is not None]
    return min(timed, key=lambda wait: wait.seconds or 0.0) if timed else waits[0]


def _documented(code: int) -> int:
    return code if code in DOCUMENTED_CODES else ItoolError.exit_code
