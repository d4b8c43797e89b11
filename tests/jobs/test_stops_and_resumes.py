"""What single stages do when they are asked to stop, and with what they had saved."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itool.config import parse_config
from itool.data.chat import render_prompt
from itool.data.selection import quotas_of
from itool.errors import Interrupted
from itool.policy.protocol import Sample
from itool.records import Node, SearchTree
from itool.stages import StageId
from jobs import generate, score
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import ScriptedPolicy
from tests.jobs.conftest import answer_with
from tests.search.scenes import WEATHER, weather_example

EXAMPLES = [weather_example(id=f"weather-{number}") for number in range(20)]


class StoppedStage:
    """A stage that has been asked to stop."""

    config = parse_config({"select": {"by": "pass_rate", "samples": 2}, "data": {"buffer_labels": "checker"}})
    seed = 17

    def working(self) -> None: ...

    def progress(self, *_: Any) -> None: ...

    def latest_checkpoint(self) -> None: ...

    def tokens(self, _count: int) -> None: ...

    def raise_if_stopped(self) -> None:
        raise Interrupted("asked to stop")


def a_policy() -> ScriptedPolicy:
    return ScriptedPolicy(byte_tokenizer(), [WEATHER], prompt_tokens=len(render_prompt(byte_tokenizer(), EXAMPLES[0])))


def test_score_stops_while_it_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, score, a_policy)
    stage: Any = StoppedStage()
    with pytest.raises(Interrupted):
        asyncio.run(score._pass_rates(stage, EXAMPLES, quotas_of(EXAMPLES, 0.5)))


class SlowStore(StoppedStage):
    """A stage whose search takes three seconds per block and whose checkpoints take one each; the clock is its own."""

    config = parse_config({"search": {"trees_in_flight": 1, "simulations": 1, "root_samples": 2}})
    id = StageId(1, "generate")

    def __init__(self, scratch: Path, *, stop_after: int = 99) -> None:
        self.scratch, self.stop_after = scratch, stop_after
        self.clock, self.found = 100.0, 0
        self.saved: list[int] = []

    def progress(self, done: int, *_: Any) -> None:
        self.found, self.clock = done, self.clock + 3

    def should_stop(self) -> bool:
        return self.found >= self.stop_after

    def save_checkpoint(self, _folder: Path, done: int) -> None:
        self.saved.append(done)
        self.clock += 1


def search_with(stage: Any, monkeypatch: pytest.MonkeyPatch, policy: ScriptedPolicy | None = None) -> None:
    answer_with(monkeypatch, generate, lambda: policy or a_policy())
    monkeypatch.setattr("jobs.checkpoints.time", SimpleNamespace(monotonic=lambda: stage.clock))
    trees, dropped = asyncio.run(asyncio.wait_for(generate._search(stage, EXAMPLES), 10))
    assert len(trees) == len(EXAMPLES)
    assert not dropped


def test_a_search_saves_its_trees_when_that_is_a_small_part_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint holds all trees: one after every block would cost more the longer the search is."""
    stage = SlowStore(tmp_path)
    search_with(stage, monkeypatch)
    assert stage.saved == [1, 8, 15]


def test_a_search_that_is_stopped_saves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = SlowStore(tmp_path, stop_after=4)
    with pytest.raises(Interrupted):
        search_with(stage, monkeypatch)
    assert stage.saved == [1, 4]


def test_a_search_that_is_stopped_within_a_block_gives_that_block_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of a real model takes minutes, longer than a stage that is asked to stop may live."""

    class Stuck(ScriptedPolicy):
        async def sample(self, *given: Any, **more: Any) -> list[Sample]:
            if stage.found == 4:
                stage.stop_after = 4
                await asyncio.Event().wait()
            return await super().sample(*given, **more)

    stage = SlowStore(tmp_path)
    policy = Stuck(byte_tokenizer(), [WEATHER], prompt_tokens=len(render_prompt(byte_tokenizer(), EXAMPLES[0])))
    with pytest.raises(Interrupted):
        search_with(stage, monkeypatch, policy)
    assert stage.saved == [1, 4], "the three trees since the last checkpoint, once"


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x1d"])
def test_a_search_resumes_whatever_the_policy_wrote(separator: str, tmp_path: Path) -> None:
    """JSON leaves these as they are, and they end a line for `str.splitlines`."""
    root, step = (
        Node(parent=parent, step_ids=[], text=text, prior=1, visits=1, value=0, outcome=0)
        for parent, text in ((None, ""), (0, f"a{separator}b"))
    )
    tree = SearchTree(
        example_id="e", prompt_ids=[1], nodes=[root, step], stopped="x", simulations=1, sampled_tokens=1, samples=1, correct_samples=0
    )
    (tmp_path / generate.TREES).write_text(tree.model_dump_json() + "\n", encoding="utf-8")
    (tmp_path / generate.DROPPED).write_text(json.dumps({"f": "unusable_example"}))
    assert generate._resume(tmp_path) == ({"e": tree}, {"f": "unusable_example"})
