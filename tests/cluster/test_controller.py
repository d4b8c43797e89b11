"""The loop: it may be killed between any two steps and started again, and ends in the same state."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itool.artifacts.resolve import resolve
from itool.artifacts.store import FolderStore
from itool.cluster.controller import Controller, StageFailed, require_reused_run
from itool.cluster.decide import Action, Fail, RetryRules, StartStage, Wait
from itool.cluster.leases import FolderLease
from itool.cluster.progress import NoWatcher
from itool.config import RunConfig, RuntimeConfig, SearchConfig
from itool.errors import ConfigError, DependencyError, InputError, Interrupted
from itool.stages import StageId, stage_ids
from tests.cluster.in_memory_cluster import Killed
from tests.cluster.in_memory_runner import InMemoryRunner

CONFIG = RunConfig(iterations=1, search=SearchConfig(shards=2))
OVERLAPPING = CONFIG.model_copy(update={"runtime": RuntimeConfig(overlap_evaluation=True)})


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def controller(folder: Path, config: RunConfig = CONFIG, **runner_settings: object) -> Controller:
    store, clock = FolderStore(folder), Clock()
    runner = InMemoryRunner(store, config, **runner_settings)
    return Controller(config, store, runner, FolderLease(folder / "lock"), clock=clock, awake=clock, sleep=clock.sleep)


def started(made: Controller) -> list[tuple[StageId, int, int]]:
    assert isinstance(made.runner, InMemoryRunner)
    return made.runner.started


def digests(folder: Path, config: RunConfig = CONFIG) -> list[str]:
    return [found.manifest.digest for found in resolve(FolderStore(folder), config).values() if found.manifest]


def test_a_run_that_names_itself_as_the_one_to_reuse_may_start(tmp_path: Path) -> None:
    require_reused_run(FolderStore(tmp_path), CONFIG.model_copy(update={"reuse_from": CONFIG.run}))
    with pytest.raises(InputError, match="reuse_from = 'absent': there is no such run"):
        require_reused_run(FolderStore(tmp_path), CONFIG.model_copy(update={"reuse_from": "absent"}))


def test_a_run_makes_every_artifact_in_order(tmp_path: Path) -> None:
    made = controller(tmp_path)
    resolutions = made.run()
    assert all(found.done for found in resolutions.values())
    order = [stage for stage, shard, _ in started(made) if shard == 0]
    assert order == stage_ids(CONFIG)


def test_a_finished_run_waits_for_what_still_ends_and_one_that_fails_lets_go(tmp_path: Path) -> None:
    waited: list[str] = []
    for failures in ({}, {"score": [65]}):
        made = controller(tmp_path / str(len(failures)), failures=failures)
        made.runner.settle = lambda _seconds: waited.append("settled")
        made.runner.detach = lambda _seconds: waited.append("detached")
        with suppress(StageFailed):
            made.run()
    assert waited == ["settled", "detached"]


def test_an_evaluation_that_overlaps_changes_no_artifact(tmp_path: Path) -> None:
    controller(tmp_path / "one after the other").run()
    made = controller(tmp_path / "overlapping", OVERLAPPING)
    while len(started(made)) < 4:
        made.step()
    assert [str(stage) for stage, _, _ in started(made)[2:]] == ["i0/evaluate", "i1/score"]
    assert not resolve(made.store, OVERLAPPING)[StageId(0, "evaluate")].done
    made.run()
    assert digests(tmp_path / "overlapping") == digests(tmp_path / "one after the other")


def test_a_finished_run_starts_nothing(tmp_path: Path) -> None:
    controller(tmp_path).run()
    again = controller(tmp_path)
    again.run()
    assert started(again) == []


def test_more_iterations_only_add(tmp_path: Path) -> None:
    controller(tmp_path).run()
    longer = CONFIG.model_copy(update={"iterations": 2})
    made = controller(tmp_path, longer)
    made.run()
    assert {(stage.iteration, stage.name) for stage, _, _ in started(made)} == {
        (2, name) for name in ("score", "generate", "dpo", "evaluate", "report")
    }


def test_a_changed_setting_reruns_only_what_reads_it(tmp_path: Path) -> None:
    controller(tmp_path).run()
    changed = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"beta": 0.2})})
    made = controller(tmp_path, changed)
    made.run()
    assert [str(stage) for stage, _, _ in started(made)] == ["i1/dpo", "i1/evaluate", "i1/report"]
    back = controller(tmp_path)
    back.run()
    assert started(back) == []


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Every object is synced to disk, which a property test can do without."""


@pytest.mark.slow
@settings(max_examples=10)
@given(deaths=st.lists(st.integers(min_value=0, max_value=40), max_size=6), config=st.sampled_from([CONFIG, OVERLAPPING]))
def test_killed_anywhere_and_restarted_it_ends_in_the_same_state(deaths: list[int], config: RunConfig) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as undisturbed, tempfile.TemporaryDirectory(dir=MEMORY) as disturbed:
        controller(Path(undisturbed)).run()
        for death in deaths:
            try:
                controller(Path(disturbed), config, die_after=death).run()
            except Killed:
                continue
        controller(Path(disturbed), config).run()
        assert digests(Path(disturbed)) == digests(Path(undisturbed))
        assert len(digests(Path(disturbed))) == len(stage_ids(CONFIG))


def test_a_failing_stage_is_tried_again(tmp_path: Path) -> None:
    made = controller(tmp_path, failures={"score": [137, 75, 69]})
    made.run()
    assert [attempt for stage, _, attempt in started(made) if stage.name == "score"] == [1, 2, 3, 4]


def test_a_hopeless_stage_ends_the_run_with_its_exit_code(tmp_path: Path) -> None:
    made = controller(tmp_path, failures={"score": [65]})
    with pytest.raises(StageFailed, match=r"i1/score failed: told to") as caught:
        made.run()
    assert caught.value.exit_code == 65


def test_a_request_to_stop_interrupts(tmp_path: Path) -> None:
    made = controller(tmp_path)
    made.stop_requested = lambda: len(started(made)) >= 2
    with pytest.raises(Interrupted):
        made.run()
    controller(tmp_path).run()


def test_the_last_look_hides_no_reason(tmp_path: Path) -> None:
    made = controller(tmp_path, failures={"score": [65]})
    look = made.runner.state

    def state() -> object:
        if any(isinstance(action, Fail) for action in made._told):
            raise ConfigError("not allowed to patch jobs")
        return look()

    made.runner.state = state
    with pytest.raises(StageFailed) as caught:
        made.run()
    assert caught.value.exit_code == 65


class FlakyStore(FolderStore):
    """Goes away for a while."""

    failures = 3

    def list(self, folder: str) -> dict[str, int]:
        if self.failures:
            self.failures -= 1
            raise DependencyError("S3 does not answer")
        return super().list(folder)


def test_a_store_that_is_down_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    made = controller(tmp_path)
    made.store = FlakyStore(tmp_path)
    made.run()
    assert made.store.failures == 0


def test_a_store_that_stays_down_ends_the_run(tmp_path: Path) -> None:
    made = controller(tmp_path)
    made.store = FlakyStore(tmp_path)
    made.store.failures = 10**6
    made.rules = RetryRules(dependency_patience_seconds=5.0)
    with pytest.raises(DependencyError, match="S3 does not answer"):
        made.run()


def test_patience_begins_anew_with_every_outage(tmp_path: Path) -> None:
    made, away = controller(tmp_path), iter([True, False, True, False])
    made.rules = RetryRules(dependency_patience_seconds=5.0)

    def renew() -> bool:
        if next(away):
            raise DependencyError("S3 does not answer")
        return False

    made.lease.renew = renew
    for _ in range(4):
        made.step()
        made.sleep(4.0)


def test_a_laptop_that_sleeps_during_an_outage_does_not_lose_its_patience(tmp_path: Path) -> None:
    made = controller(tmp_path)
    made.store = FlakyStore(tmp_path)
    made.step()
    asleep_seconds, awake = 8 * 3600.0, made.awake
    made.clock = lambda: awake() + asleep_seconds
    made.run()


class Listener(NoWatcher):
    """Keeps what was decided."""

    def __init__(self) -> None:
        self.heard: list[Action] = []

    def decided(self, action: Action) -> None:
        self.heard.append(action)


def test_every_decision_is_told_once_with_its_reason(tmp_path: Path) -> None:
    listener = Listener()
    made = controller(tmp_path)
    made.watcher = listener
    made.run()
    starts = [action for action in listener.heard if isinstance(action, StartStage)]
    assert len(starts) == len(stage_ids(CONFIG)) + 1
    assert starts[0].reason == "has not run yet"


def test_a_wait_is_told_when_it_lasts(tmp_path: Path) -> None:
    listener = Listener()
    made = controller(tmp_path)
    made.watcher = listener
    wait, retry = Wait("i1-score pending: too few GPUs"), Wait("tried again", 3.0)
    clock = made.clock
    assert isinstance(clock, Clock)
    for _ in range(8):
        made._announce([wait, retry])
        clock.now += 1.0
    assert listener.heard == [retry, wait]
    made._announce([])
    made._announce([retry])
    assert listener.heard == [retry, wait, retry]


def test_a_pause_before_a_retry_is_told_once(tmp_path: Path) -> None:
    made = controller(tmp_path, failures={"score": [1, 69]})
    made.watcher = listener = Listener()
    made.run()
    pauses = [action for action in listener.heard if isinstance(action, Wait) and action.seconds is not None]
    assert [action.reason.partition(": ")[2] for action in pauses] == [
        "attempt 1 ended with exit code 1: told to",
        "attempt 2 ended with exit code 69: told to",
    ]
