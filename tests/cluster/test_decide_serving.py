"""What vLLM does beside the stages, read as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from itool.artifacts.resolve import Resolution
from itool.cluster.decide import Action, Fail, Finish, Observed, StartStage, Wait, next_actions
from itool.cluster.decide_serving import Serve, ServingPod, ServingState, StopServing
from itool.cluster.runner import Attempt, Task
from itool.cluster.wish import StoredArtifact, Wish
from itool.config import RunConfig
from itool.stages import StageId, stage_ids

PREPARE, WARMUP, BASELINE = StageId(0, "prepare"), StageId(0, "warmup"), StageId(0, "evaluate")
SCORE, GENERATE, DPO, EVALUATE, REPORT = (
    *(StageId(1, name) for name in ("score", "generate", "dpo", "evaluate")),
    StageId(1, "report"),
)
NOW = 10_000.0


def configured(*, sharing: str = "exclusive", replicas: int = 1, gpus: int | None = None, **sections: Any) -> RunConfig:
    serving = {"gpu_sharing": sharing, "replicas": replicas, "gpus": gpus, "startup_seconds": 900}
    document = {
        "iterations": 1, "root": "s3://bucket/runs", "runtime": {"backend": "kubernetes"}, "policy": {"backend": "vllm"},
        "kubernetes": {"serving": serving, "pending_seconds": 1800}, **sections,
    }  # fmt: skip
    return RunConfig.model_validate(document)


CONFIG = configured()


def done(stage: StageId) -> Resolution:
    digest = f"{stage_ids(CONFIG).index(stage):064x}"
    return Resolution(stage, "done", "up to date", "key", f"demo/{stage}/key", digest=digest)


def stored(stage: StageId) -> StoredArtifact:
    found = done(stage)
    assert found.prefix is not None
    assert found.digest is not None
    return StoredArtifact(prefix=found.prefix, digest=found.digest)


def wish(adapter: StageId, at: float = NOW) -> Wish:
    return Wish(model=stored(PREPARE), adapter=stored(adapter), at=at)


def pod(phase: Any = "serving", since: float = NOW, reason: str = "", name: str = "demo-vllm-a", exit_code: int = 0) -> ServingPod:
    return ServingPod(name, phase, since, reason, exit_code)


def serving(adapter: StageId, *pods: ServingPod, replicas: int = 1, **fields: Any) -> ServingState:
    return ServingState(wish(adapter), replicas, pods, **fields)


def observe(stage: StageId, state: ServingState | None, *attempts: Attempt, config: RunConfig = CONFIG) -> Observed:
    """`stage` is the first that is not done."""
    order = stage_ids(config)
    found = {other: done(other) for other in order[: order.index(stage)]}
    found[stage] = Resolution(stage, "missing", "has not run yet", "key", f"demo/{stage}/key")
    for other in order[order.index(stage) + 1 :]:
        found[other] = Resolution(other, "waiting", "input is not there yet")
    tries = {Task(stage, "key"): attempts} if attempts else {}
    return Observed(config, found, tries, NOW, serving=state)


def start(stage: StageId) -> StartStage:
    return StartStage(Task(stage, "key"), 1, "has not run yet")


def decide(stage: StageId, state: ServingState | None, *attempts: Attempt, config: RunConfig = CONFIG) -> list[Action]:
    return next_actions(observe(stage, state, *attempts, config=config))


def test_the_first_stage_that_asks_the_policy_brings_vllm_up_with_its_adapter_and_waits() -> None:
    assert decide(BASELINE, ServingState()) == [
        Serve(stored(PREPARE), stored(WARMUP), "i0/evaluate asks the adapter of i0/warmup"),
        Wait("i0/evaluate waits for vLLM: 0 of 1 replica ready"),
    ]


def test_it_starts_when_every_replica_has_proved_the_adapter() -> None:
    config = configured(replicas=2)
    one = serving(WARMUP, pod(), pod("starting", reason="not ready: vllm", name="demo-vllm-b"), replicas=2)
    assert decide(BASELINE, one, config=config) == [
        Wait("i0/evaluate waits for vLLM: 1 of 2 replicas ready; demo-vllm-b is starting: not ready: vllm")
    ]
    assert decide(BASELINE, serving(WARMUP, pod(), pod(), replicas=2), config=config) == [start(BASELINE)]


def test_a_new_adapter_is_wished_for_before_it_is_measured() -> None:
    [serve, wait] = decide(EVALUATE, serving(WARMUP, pod()))
    assert serve == Serve(stored(PREPARE), stored(DPO), "i1/evaluate asks the adapter of i1/dpo")
    assert isinstance(wait, Wait)
    assert decide(EVALUATE, serving(DPO, pod())) == [start(EVALUATE)]


def test_generate_asks_the_adapter_that_the_baseline_was_measured_with() -> None:
    assert decide(GENERATE, serving(WARMUP, pod())) == [start(GENERATE)]


@pytest.mark.parametrize(
    "state",
    [
        serving(WARMUP, pod(), replicas=3),
        serving(WARMUP, pod(), current=False),
        ServingState(wish(WARMUP), 0),
    ],
    ids=["other replicas", "other settings", "scaled to 0"],
)
def test_a_deployment_that_is_not_as_wanted_is_made_so(state: ServingState) -> None:
    actions = decide(GENERATE, state)
    assert [type(action) for action in actions] == [Serve, Wait]
    assert actions[0].reason == "i1/generate asks the adapter of i0/warmup"


def test_what_pods_of_other_settings_refuse_is_no_reason_to_give_up() -> None:
    state = serving(WARMUP, pod("refused", reason="rank 64", exit_code=65), current=False, overfilled="Evicted: ...")
    assert [type(action) for action in decide(GENERATE, state)] == [Serve, Wait]


def test_exclusive_serving_stays_while_other_stages_train() -> None:
    for stage in (SCORE, DPO):
        assert decide(stage, serving(WARMUP, pod())) == [start(stage)]


def test_a_timeshared_gpu_is_given_back_before_a_stage_computes_on_it() -> None:
    config = configured(sharing="timeshare", gpus=1)
    for stage in (SCORE, DPO):
        assert decide(stage, serving(WARMUP, pod()), config=config) == [
            StopServing(f"{stage} needs the GPU"),
            Wait(f"{stage} waits for the GPU: 1 vLLM pod still there"),
        ]
        leaving = ServingState(wish(WARMUP), 0, (pod("stopping"), pod("stopping")))
        assert decide(stage, leaving, config=config) == [Wait(f"{stage} waits for the GPU: 2 vLLM pods still there")]
        assert decide(stage, ServingState(wish(WARMUP), 0), config=config) == [start(stage)]
    [serve, wait] = decide(GENERATE, ServingState(wish(WARMUP), 0), config=config)
    assert isinstance(serve, Serve)
    assert isinstance(wait, Wait)


def test_what_takes_no_gpu_or_leaves_none_is_no_reason_to_stop_vllm() -> None:
    state = serving(WARMUP, pod())
    for config in (
        configured(sharing="timeshare", gpus=0),
        configured(sharing="timeshare"),  # the CPU build
        configured(sharing="timeshare", kubernetes={"serving": {"gpu_sharing": "timeshare", "gpus": 1}, "pods": {"gpus": 0}}),
    ):
        assert decide(SCORE, state, config=config) == [start(SCORE)]
    by_pass_rate = configured(sharing="timeshare", gpus=1, select={"by": "pass_rate"})
    assert decide(SCORE, state, config=by_pass_rate) == [start(SCORE)]


def test_vllm_stops_when_no_later_stage_asks_it() -> None:
    assert decide(REPORT, serving(DPO, pod())) == [StopServing("no later stage asks the policy"), start(REPORT)]
    assert decide(REPORT, ServingState(wish(DPO), 0, (pod("stopping"),))) == [start(REPORT)]


def test_the_end_stops_what_still_runs() -> None:
    finished = {stage: done(stage) for stage in stage_ids(CONFIG)}
    assert next_actions(Observed(CONFIG, finished, serving=serving(DPO, pod()))) == [
        StopServing("every artifact is there"),
        Finish("every artifact is there"),
    ]
    assert next_actions(Observed(CONFIG, finished, serving=ServingState())) == [Finish("every artifact is there")]


def test_a_failed_run_holds_no_gpu() -> None:
    failed = Attempt(1, "failed", 65, "row 3 has no tools", ended_at=NOW)
    assert decide(DPO, serving(WARMUP, pod()), failed) == [StopServing("i1/dpo failed"), Fail(DPO, 65, "row 3 has no tools")]


def test_a_running_stage_is_left_alone_while_a_pod_is_replaced_and_the_wait_says_so() -> None:
    state = serving(WARMUP, pod("starting", NOW - 100_000, "not ready: vllm"))
    assert decide(GENERATE, state, Attempt(1, "running")) == [
        Wait("i1-generate running; waits for vLLM: 0 of 1 replica ready; demo-vllm-a is starting: not ready: vllm")
    ]
    gone = decide(GENERATE, ServingState(), Attempt(1, "running"))
    assert [type(action) for action in gone] == [Serve, Wait]


def test_a_stage_that_lost_vllm_is_tried_again_only_when_it_serves() -> None:
    lost = Attempt(1, "failed", 69, "no vLLM answers", started_at=NOW - 90, ended_at=NOW - 60)
    [waits] = decide(GENERATE, serving(WARMUP, pod("starting")), lost)
    assert isinstance(waits, Wait)
    assert waits.reason.startswith("i1/generate waits for vLLM: 0 of 1")
    [again] = decide(GENERATE, serving(WARMUP, pod()), lost)
    assert isinstance(again, StartStage)
    assert again.attempt == 2


@pytest.mark.parametrize(
    ("phase", "limit", "key"), [("pending", 1800, "kubernetes.pending_seconds"), ("starting", 900, "kubernetes.serving.startup_seconds")]
)
def test_a_pod_that_takes_too_long_ends_the_run_with_69(phase: str, limit: int, key: str) -> None:
    state = serving(WARMUP, pod(phase, NOW - limit + 1, "unschedulable: no GPU"))
    assert [type(action) for action in decide(GENERATE, state)] == [Wait]
    state = serving(WARMUP, pod(phase, NOW - limit, "unschedulable: no GPU"))
    assert decide(GENERATE, state) == [
        StopServing("i1/generate failed"),
        Fail(GENERATE, 69, f"vLLM pod demo-vllm-a is {phase} for more than {limit} s ({key}): unschedulable: no GPU"),
    ]


def test_a_deployment_that_gets_no_pod_ends_the_run_with_its_reason() -> None:
    state = serving(WARMUP, since=NOW - 1799, reason="exceeded quota")
    assert decide(GENERATE, state) == [Wait("i1/generate waits for vLLM: 0 of 1 replica ready; exceeded quota")]
    [_, fail] = decide(GENERATE, replace(state, since=NOW - 1800))
    assert fail == Fail(GENERATE, 69, "there is no vLLM pod after 1800 s (kubernetes.pending_seconds): exceeded quota")


def test_a_deployment_that_gets_too_few_pods_ends_the_run_with_its_reason() -> None:
    config, two = configured(replicas=2), {"replicas": 2, "since": NOW - 1800}
    [_, fail] = decide(GENERATE, serving(WARMUP, pod(), reason="exceeded quota", **two), config=config)
    assert fail == Fail(GENERATE, 69, "there is 1 vLLM pod of 2 after 1800 s (kubernetes.pending_seconds): exceeded quota")
    replaced = serving(WARMUP, pod(), **two)  # nothing refuses the other one: it comes
    assert [type(action) for action in decide(GENERATE, replaced, config=config)] == [Wait]
    stopping = serving(WARMUP, pod(), pod("stopping", name="demo-vllm-b"), reason="exceeded quota", **two)
    assert [type(action) for action in decide(GENERATE, stopping, config=config)] == [Wait]


def test_an_adapter_that_a_pod_refuses_ends_the_run_with_65() -> None:
    state = serving(WARMUP, pod("refused", reason="adapter_model.safetensors was altered", exit_code=65))
    [stopped, fail] = decide(GENERATE, state)
    assert stopped == StopServing("i1/generate failed")
    assert fail == Fail(GENERATE, 65, "vLLM pod demo-vllm-a refuses the adapter: adapter_model.safetensors was altered")


def test_pods_that_fill_their_disk_again_and_again_end_the_run_with_74() -> None:
    words = 'Evicted: Usage of EmptyDir volume "models" exceeds the limit "10Gi".'
    actions = decide(GENERATE, serving(WARMUP, pod("starting"), overfilled=words))
    assert actions == [
        StopServing("i1/generate failed"),
        Fail(GENERATE, 74, f"vLLM pods store more than they may: {words}; raise kubernetes.serving.scratch"),
    ]


def test_where_the_controller_runs_no_vllm_nothing_changes() -> None:
    for stage in stage_ids(CONFIG):
        assert decide(stage, None) == [start(stage)]


OVERLAPPING = {"runtime": {"backend": "kubernetes", "overlap_evaluation": True}}


def test_a_vllm_of_earlier_settings_stops_before_the_next_stage_but_not_under_one_that_asks_it() -> None:
    unwanted = StopServing("the settings want no vLLM here")
    for policy in ({"backend": "vllm", "url": "http://elsewhere"}, {"backend": "embedded"}):
        config = configured(policy=policy)
        assert decide(GENERATE, serving(WARMUP, pod()), config=config) == [unwanted, start(GENERATE)]
        running, ended = Attempt(1, "running"), Attempt(1, "failed", 69, "vLLM is away", ended_at=NOW - 100)
        assert unwanted not in decide(GENERATE, serving(WARMUP, pod()), running, config=config)
        assert decide(GENERATE, serving(WARMUP, pod()), ended, config=config)[0] == unwanted
        assert decide(DPO, serving(WARMUP, pod()), running, config=config)[0] == unwanted
        assert decide(GENERATE, serving(WARMUP, replicas=0), config=config) == [start(GENERATE)]


def with_next(observed: Observed, stage: StageId) -> list[Action]:
    """What comes next when `stage` could run as well."""
    found = {**observed.resolutions, stage: Resolution(stage, "missing", "has not run yet", "key", f"demo/{stage}/key")}
    return next_actions(replace(observed, resolutions=found))


def test_scoring_by_perplexity_starts_while_the_evaluation_waits_for_vllm() -> None:
    config = configured(**OVERLAPPING)
    waiting = with_next(observe(BASELINE, ServingState(), config=config), SCORE)
    assert [type(action) for action in waiting] == [Serve, Wait, StartStage]
    assert waiting[-1] == start(SCORE)
    assert with_next(observe(BASELINE, serving(WARMUP, pod()), config=config), SCORE) == [start(BASELINE), start(SCORE)]


def test_scoring_by_pass_rate_waits_for_the_same_vllm() -> None:
    config = configured(**OVERLAPPING, select={"by": "pass_rate"})
    waiting = with_next(observe(BASELINE, ServingState(), config=config), SCORE)
    assert [type(action) for action in waiting] == [Serve, Wait, Wait]
    assert with_next(observe(BASELINE, serving(WARMUP, pod()), config=config), SCORE) == [start(BASELINE), start(SCORE)]


def test_a_failure_of_either_stops_vllm() -> None:
    observed = observe(BASELINE, serving(WARMUP, pod()), config=configured(**OVERLAPPING))
    failed = {Task(SCORE, "key"): (Attempt(1, "failed", 65, "bad", started_at=NOW, ended_at=NOW),)}
    actions = with_next(replace(observed, attempts=failed), SCORE)
    assert [type(action) for action in actions] == [StopServing, Fail]
