"""What single stages do when they are asked to stop, and with what they had saved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itool.config import parse_config
from itool.data.chat import render_prompt
from itool.data.selection import quotas_of
from itool.errors import Interrupted
from itool.policy.protocol import Sample
from itool.records import Node, Score, SearchTree
from itool.search.seeds import draw_seed
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


class Shard(SlowStore):
    """The second of two shards of the second iteration's search; the examples of even numbers were selected."""

    id = StageId(2, "generate")
    shard, shards = 1, 2
    searched = ("weather-2", "weather-6", "weather-10", "weather-14", "weather-18")

    def __init__(self, scratch: Path, method: str = "mcts_dpo", saved: Path | None = None) -> None:
        super().__init__(scratch)
        self.config = parse_config({"method": method, "search": {"simulations": 1, "root_samples": 2, "best_of": 2}})
        self.saved_before = saved
        self.written: dict[str, list[Any]] = {}
        self.counts: dict[str, Any] = {}

    def read(self, _kind: type, _role: str, name: str) -> list[Any]:
        if name == "buffer.jsonl":
            return EXAMPLES
        return [Score(example_id=f"weather-{n}", stratum="calls", perplexity=1.0, selected=n % 2 == 0) for n in reversed(range(20))]

    def latest_checkpoint(self) -> Path | None:
        return self.saved_before

    def write(self, name: str, rows: Iterable[Any]) -> None:
        self.written[name] = list(rows)

    def count(self, **counts: Any) -> None:
        self.counts = counts

    def metrics(self, _figures: dict[str, Any]) -> None: ...

    def run(self, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], ScriptedPolicy]:
        """The examples whose trees it wrote, and the policy that was asked."""
        policy = a_policy()
        answer_with(monkeypatch, generate, lambda: policy)
        stage: Any = self
        generate.generate(stage)
        return [tree.example_id for tree in self.written[generate.TREES]], policy


@pytest.mark.parametrize("method", ["mcts_dpo", "best_of_n", "rejection_sampling"])
def test_a_shard_searches_its_part_of_what_was_selected(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Shard(tmp_path, method)
    found, policy = stage.run(monkeypatch)
    assert found == list(Shard.searched)
    assert {draw_seed(17, 2, name, (), 0) for name in Shard.searched} == {request.seed for request in policy.requests}
    assert [sample.example_id for sample in stage.written["samples.jsonl"]] == (found if method == "rejection_sampling" else [])
    assert (stage.counts["incoming"], stage.counts["kept"], stage.counts["dropped"]) == (5, 5, {})


def test_a_shard_leaves_what_it_has_found_or_dropped_before_and_keeps_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Shard(tmp_path)
    before.run(monkeypatch)
    trees = {tree.example_id: tree for tree in before.written[generate.TREES]}
    (tmp_path / "saved").mkdir()
    generate._write(tmp_path / "saved", {name: trees[name] for name in ("weather-18", "weather-6")}, {"weather-2": "unusable_example"})
    stage = Shard(tmp_path, saved=tmp_path / "saved")
    found, policy = stage.run(monkeypatch)
    assert found == ["weather-6", "weather-10", "weather-14", "weather-18"]
    assert stage.written[generate.TREES] == [trees[name] for name in found]
    assert len(policy.requests) == 2
    assert (stage.counts["incoming"], stage.counts["kept"], stage.counts["dropped"]) == (5, 4, {"unusable_example": 1})


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
