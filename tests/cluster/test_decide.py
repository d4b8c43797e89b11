"""The controller's decisions, read as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from itool.artifacts.resolve import Resolution, State
from itool.cluster.decide import Action, Fail, Finish, Observed, RetryRules, StartStage, StopStage, Wait, next_actions
from itool.cluster.runner import Attempt, Task
from itool.config import PolicyConfig, RunConfig, RuntimeConfig, SearchConfig
from itool.config_kubernetes import KubernetesConfig, ServingConfig
from itool.stages import StageId, stage_ids

CONFIG = RunConfig(iterations=1)
PREPARE, GENERATE = StageId(0, "prepare"), StageId(1, "generate")


def resolutions(done: int, *, shards: int = 1, shards_done: tuple[int, ...] = (), state: State = "missing") -> dict[StageId, Resolution]:
    """The first `done` stages are there, the next can run, the rest wait."""
    found = {}
    for index, stage in enumerate(stage_ids(CONFIG)):
        if index < done:
            found[stage] = Resolution(stage, "done", "up to date", "key", "prefix")
        elif index == done:
            found[stage] = Resolution(stage, state, "has not run yet", "key", "prefix", shards=shards, shards_done=shards_done)
        else:
            found[stage] = Resolution(stage, "waiting", "input is not there yet")
    return found


def failed(number: int, code: int, *, ended_at: float = 100.0, reason: str = "") -> Attempt:
    return Attempt(number, "failed", code, reason, started_at=90.0, ended_at=ended_at)


def observe(*attempts: Attempt, now: float = 1000.0, done: int = 0) -> Observed:
    found = resolutions(done)
    task = Task(list(found)[done], "key")
    return Observed(CONFIG, found, {task: attempts} if attempts else {}, now)


def test_the_first_missing_stage_is_started_with_its_reason() -> None:
    assert next_actions(observe()) == [StartStage(Task(PREPARE, "key"), 1, "has not run yet")]
    assert next_actions(observe(done=3)) == [StartStage(Task(StageId(1, "score"), "key"), 1, "has not run yet")]


def test_a_running_stage_is_waited_for() -> None:
    assert next_actions(observe(Attempt(1, "running"))) == [Wait("i0-prepare running")]


def test_a_run_with_every_artifact_is_finished() -> None:
    assert next_actions(Observed(CONFIG, resolutions(len(stage_ids(CONFIG))))) == [Finish("every artifact is there")]


def test_a_damaged_artifact_ends_the_run() -> None:
    [action] = next_actions(Observed(CONFIG, resolutions(2, state="damaged")))
    assert action == Fail(StageId(0, "evaluate"), 65, "has not run yet")


@pytest.mark.parametrize("code", [64, 65, 76])
def test_what_would_end_alike_is_not_tried_again(code: int) -> None:
    assert next_actions(observe(failed(1, code, reason="row 3 has no tools"))) == [Fail(PREPARE, code, "row 3 has no tools")]


def test_an_interrupted_stage_starts_again_at_once_and_without_limit() -> None:
    tries = [failed(number, 75) for number in range(1, 9)]
    [action] = next_actions(observe(*tries, now=100.0))
    assert isinstance(action, StartStage)
    assert (action.attempt, action.reason) == (9, "attempt 8 ended with exit code 75")


@pytest.mark.parametrize("code", [1, 74, 137])
def test_other_failures_are_tried_max_attempts_times(code: int) -> None:
    [again] = next_actions(observe(failed(1, code), failed(2, code)))
    assert isinstance(again, StartStage)
    assert again.attempt == 3
    [end] = next_actions(observe(failed(1, code), failed(2, code), failed(3, code, reason="it broke")))
    assert end == Fail(PREPARE, 1 if code == 137 else code, "it broke (gave up after 3 attempts)")


def test_a_retry_pauses_first() -> None:
    [action] = next_actions(observe(failed(1, 1, ended_at=100.0), failed(2, 1, ended_at=100.0), now=100.4))
    assert isinstance(action, Wait)
    assert action.reason == "i0-prepare is tried again: attempt 2 ended with exit code 1"
    assert action.seconds == pytest.approx(0.6)


def test_a_pause_ends_although_the_clock_is_set_back_by_hours() -> None:
    [action] = next_actions(observe(failed(1, 137, ended_at=5000.0), now=1000.0))
    assert isinstance(action, StartStage)


def test_a_service_that_is_down_is_waited_for_and_then_given_up() -> None:
    tries = [failed(number, 69, ended_at=100.0 + 10 * number, reason="vLLM does not answer") for number in range(1, 6)]
    [waiting] = next_actions(observe(*tries, now=151.0))
    assert isinstance(waiting, Wait)
    assert waiting.seconds == pytest.approx(15.0)
    [again] = next_actions(observe(*tries, now=170.0))
    assert isinstance(again, StartStage)
    [end] = next_actions(observe(*tries, failed(6, 69, ended_at=500.0, reason="vLLM does not answer"), now=501.0))
    assert end == Fail(PREPARE, 69, "vLLM does not answer")


def ended(number: int, started_at: float, ended_at: float) -> Attempt:
    return Attempt(number, "failed", 69, "vLLM does not answer", started_at=started_at, ended_at=ended_at)


def test_outages_hours_apart_are_two() -> None:
    """The second attempt had its service for two hours; after it the pauses are short again and the patience is whole."""
    first, second = ended(1, 0.0, 3600.0), ended(2, 3601.0, 10800.0)
    [again] = next_actions(observe(first, second, now=10801.0))
    assert again == StartStage(Task(PREPARE, "key"), 3, "attempt 2 ended with exit code 69: vLLM does not answer")
    [end] = next_actions(observe(first, second, ended(3, 10801.0, 11110.0), now=11110.0))
    assert end == Fail(PREPARE, 69, "vLLM does not answer")


@pytest.mark.parametrize(("backend", "startup"), [("local", 300.0), ("kubernetes", 900.0)])
def test_an_attempt_that_only_waits_is_no_sign_of_a_service(backend: Literal["local", "kubernetes"], startup: float) -> None:
    """A server's start, its answers, the other workers."""
    root = "runs" if backend == "local" else "s3://bucket/runs"
    config = RunConfig(iterations=1, root=root, runtime=RuntimeConfig(backend=backend, worker_timeout_seconds=1800.0))
    wait = 300.0 + startup + 1800.0 + 10 * 120.0
    waited = [ended(number, number * 1e5, number * 1e5 + wait) for number in (1, 2)]
    [end] = next_actions(replace(observe(*waited, now=3e5), config=config))
    assert end == Fail(PREPARE, 69, "vLLM does not answer")
    worked = [*waited[:1], ended(2, 2e5, 2e5 + wait + 1.0)]
    [again] = next_actions(replace(observe(*worked, now=3e5), config=config))
    assert isinstance(again, StartStage)


def test_of_an_attempt_with_many_pods_the_longest_tells_whether_a_service_was_there() -> None:
    """Seven pods that waited half an hour each had none; one that worked for two hours had."""
    day = 86_400.0
    waited = replace(ended(2, day, 1.5 * day), longest_pod_seconds=1800.0)
    [end] = next_actions(observe(ended(1, 0.0, 10.0), waited, now=2 * day))
    assert isinstance(end, Fail)
    worked = replace(waited, longest_pod_seconds=7200.0)
    [again] = next_actions(observe(ended(1, 0.0, 10.0), worked, now=2 * day))
    assert isinstance(again, StartStage)


def test_an_attempt_that_does_further_shards_had_its_service() -> None:
    """Of each it does those again that are stored, which tells nothing."""
    day = 86_400.0
    first = replace(ended(1, 0.0, 10.0), shards_done=5, longest_pod_seconds=10.0)
    again = replace(ended(2, day, 1.5 * day), shards_done=5, longest_pod_seconds=10.0)
    [end] = next_actions(observe(first, again, now=2 * day))
    assert isinstance(end, Fail)
    [retry] = next_actions(observe(first, replace(again, shards_done=300), now=2 * day))
    assert isinstance(retry, StartStage)


def test_interruptions_and_outages_do_not_use_up_attempts() -> None:
    [action] = next_actions(observe(failed(1, 1), failed(2, 75), failed(3, 69), failed(4, 1)))
    assert isinstance(action, StartStage)
    assert action.attempt == 5


def test_exit_0_without_an_artifact_is_tried_again_and_then_fails() -> None:
    good = [Attempt(number, "succeeded", 0) for number in (1, 2, 3)]
    [again] = next_actions(observe(good[0]))
    assert again == StartStage(Task(PREPARE, "key"), 2, "finished without a manifest: join again")
    [end] = next_actions(observe(*good))
    assert end == Fail(PREPARE, 1, "i0/prepare ends with exit code 0 but leaves no artifact key")


def sharded(attempts: dict[int, Attempt], shards_done: tuple[int, ...] = ()) -> Observed:
    config = CONFIG.model_copy(update={"search": SearchConfig(shards=3)})
    tries = {Task(GENERATE, "key", shard, 3): (attempt,) for shard, attempt in attempts.items()}
    return Observed(config, resolutions(4, shards=3, shards_done=shards_done), tries, 1000.0)


def test_shards_start_together() -> None:
    assert [action.task.shard for action in next_actions(sharded({})) if isinstance(action, StartStage)] == [0, 1, 2]


def test_shards_that_each_start_a_vllm_run_one_after_another() -> None:
    """It takes a GPU's whole memory. A server at `policy.url`, and the controller's in a cluster, are shared."""

    def started(attempts: dict[int, Attempt], *, shards_done: tuple[int, ...] = (), url: str | None = None) -> list[int]:
        observed = sharded(attempts, shards_done)
        config = observed.config.model_copy(update={"policy": PolicyConfig(backend="vllm", url=url)})
        return [action.task.shard for action in next_actions(replace(observed, config=config)) if isinstance(action, StartStage)]

    assert started({}) == [0]
    assert started({0: Attempt(1, "running")}) == []
    assert started({0: Attempt(1, "succeeded", 0)}) == [1]
    assert started({1: failed(1, 75)}, shards_done=(0,)) == [1]
    assert started({0: failed(1, 69, ended_at=999.9), 2: Attempt(1, "running")}) == []
    assert started({}, url="http://127.0.0.1:8000") == [0, 1, 2]


def test_only_unfinished_shards_start() -> None:
    actions = next_actions(sharded({1: failed(1, 137)}, shards_done=(0,)))
    assert [(action.task.shard, action.attempt) for action in actions if isinstance(action, StartStage)] == [(1, 2), (2, 1)]


def test_shards_that_nobody_joined_are_joined_by_the_first() -> None:
    [action] = next_actions(sharded({}, shards_done=(0, 1, 2)))
    assert action == StartStage(Task(GENERATE, "key", 0, 3), 1, "finished without a manifest: join again")


def test_one_hopeless_shard_ends_the_run() -> None:
    [action] = next_actions(sharded({0: Attempt(1, "running"), 1: failed(1, 65, reason="bad"), 2: Attempt(1, "running")}))
    assert action == Fail(GENERATE, 65, "bad")


def test_attempts_for_another_key_do_not_count() -> None:
    stale = {Task(PREPARE, "old key"): (failed(1, 65),)}
    [action] = next_actions(replace(observe(), attempts=stale))
    assert action == StartStage(Task(PREPARE, "key"), 1, "has not run yet")


def test_patience_is_a_rule() -> None:
    observed = replace(observe(failed(1, 1)), rules=RetryRules(max_attempts=1))
    assert isinstance(next_actions(observed)[0], Fail)


def test_what_an_earlier_controller_left_running_for_other_settings_is_stopped() -> None:
    found, other = resolutions(1), Task(StageId(0, "warmup"), "other key")
    late = Task(StageId(1, "dpo"), "key of a stage that waits now")
    gone = Task(StageId(7, "dpo"), "key")
    attempts = {task: (Attempt(2, "running"),) for task in (other, late, gone)}
    actions = next_actions(Observed(CONFIG, found, {**attempts, Task(PREPARE, "key"): (Attempt(1, "running"),)}))
    assert [action.task for action in actions if isinstance(action, StopStage)] == [other, late, gone]
    assert actions[-1] == StartStage(Task(StageId(0, "warmup"), "key"), 1, "has not run yet")


def test_past_attempts_give_numbers_but_are_no_failures() -> None:
    past = replace(failed(3, 65), past=True)
    assert next_actions(observe(past)) == [StartStage(Task(PREPARE, "key"), 4, "has not run yet")]
    assert next_actions(observe(replace(Attempt(3, "succeeded", 0), past=True))) == [StartStage(Task(PREPARE, "key"), 4, "has not run yet")]


def test_past_attempts_use_up_no_tries() -> None:
    broken = [replace(failed(number, 1), past=True) for number in (1, 2, 3)]
    [again] = next_actions(observe(*broken, failed(4, 1)))
    assert again == StartStage(Task(PREPARE, "key"), 5, "attempt 4 ended with exit code 1")
    empty = [Attempt(number, "succeeded", 0, past=True) for number in (1, 2, 3)]
    [again] = next_actions(observe(*empty, Attempt(4, "succeeded", 0)))
    assert again == StartStage(Task(PREPARE, "key"), 5, "finished without a manifest: join again")


def test_a_finished_run_stops_what_an_earlier_controller_left_running() -> None:
    left = Task(StageId(1, "dpo"), "other key")
    actions = next_actions(Observed(CONFIG, resolutions(len(stage_ids(CONFIG))), {left: (Attempt(1, "running"),)}))
    assert actions == [StopStage(left, 1, "i1/dpo has other settings or inputs now"), Finish("every artifact is there")]


def test_a_final_attempt_is_not_repeated_whatever_its_code() -> None:
    final = replace(failed(1, 69, reason="no room"), final=True)
    assert next_actions(observe(final)) == [Fail(PREPARE, 69, "no room")]


OVERLAPPING = RunConfig(iterations=2, runtime=RuntimeConfig(overlap_evaluation=True))


def overlapping(*missing: tuple[int, str], attempts: dict[tuple[int, str], Attempt] | None = None, **settings: object) -> list[Action]:
    """What comes next in a run of two iterations of which these stages are missing."""
    config = OVERLAPPING.model_copy(update=settings)
    found = {stage: Resolution(stage, "done" if stage not in missing else "missing", "", "key", "prefix") for stage in stage_ids(config)}
    tries = {Task(StageId(*stage), "key"): (attempt,) for stage, attempt in (attempts or {}).items()}
    return next_actions(Observed(config, found, tries, 1000.0))


def begun(actions: list[Action]) -> list[str]:
    return [str(action.task.stage) for action in actions if isinstance(action, StartStage)]


@pytest.mark.parametrize("second", ["score", "generate"])
def test_an_evaluation_runs_beside_the_next_iterations_scoring_and_search(second: str) -> None:
    assert begun(overlapping((1, "evaluate"), (2, second))) == ["i1/evaluate", f"i2/{second}"]


def test_training_waits_for_the_evaluation_of_the_iteration_before() -> None:
    assert begun(overlapping((1, "evaluate"), (2, "dpo"))) == ["i1/evaluate"]


def test_evaluations_run_one_after_the_other_and_the_last_one_alone() -> None:
    assert begun(overlapping((1, "evaluate"), (2, "evaluate"))) == ["i1/evaluate"]
    assert begun(overlapping((2, "evaluate"), (2, "report"))) == ["i2/evaluate"]


def test_continued_sft_has_nothing_beside_an_evaluation() -> None:
    assert begun(overlapping((1, "evaluate"), (2, "dpo"), method="sft_continued")) == ["i1/evaluate"]


def test_two_stages_do_not_each_start_a_vllm() -> None:
    vllm = PolicyConfig(backend="vllm")
    assert begun(overlapping((1, "evaluate"), (2, "score"), policy=vllm)) == ["i1/evaluate"]
    served = vllm.model_copy(update={"url": "http://vllm:8000"})
    assert begun(overlapping((1, "evaluate"), (2, "score"), policy=served)) == ["i1/evaluate", "i2/score"]


def test_where_vllm_and_the_stages_take_turns_on_a_gpu_nothing_overlaps() -> None:
    runtime = RuntimeConfig(backend="kubernetes", overlap_evaluation=True)
    assert begun(overlapping((1, "evaluate"), (2, "score"), runtime=runtime)) == ["i1/evaluate", "i2/score"]
    shared = KubernetesConfig(serving=ServingConfig(gpu_sharing="timeshare"))
    assert begun(overlapping((1, "evaluate"), (2, "score"), runtime=runtime, kubernetes=shared)) == ["i1/evaluate"]


def test_overlapping_is_asked_for() -> None:
    assert begun(overlapping((1, "evaluate"), (2, "score"), runtime=RuntimeConfig())) == ["i1/evaluate"]


def test_of_two_stages_the_one_that_failed_for_good_ends_the_run() -> None:
    tried = {(1, "evaluate"): Attempt(1, "running"), (2, "score"): failed(1, 65, reason="row 3 has no tools")}
    assert overlapping((1, "evaluate"), (2, "score"), attempts=tried) == [Fail(StageId(2, "score"), 65, "row 3 has no tools")]


def test_of_two_stages_one_is_tried_again_while_the_other_runs() -> None:
    tried = {(1, "evaluate"): failed(1, 75), (2, "score"): Attempt(1, "running")}
    actions = overlapping((1, "evaluate"), (2, "score"), attempts=tried)
    assert begun(actions) == ["i1/evaluate"]
    assert Wait("i2-score running") in actions
