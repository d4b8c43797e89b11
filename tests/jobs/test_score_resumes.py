"""A scoring that is stopped anywhere and started again gives the bytes of an undisturbed one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from itool.config import RunConfig, parse_config
from itool.data.chat import render_prompt
from itool.demo import base_model_path
from itool.errors import DependencyError, Interrupted
from itool.policy.protocol import Sample
from itool.records import Example, Score
from jobs import score
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import ScriptedPolicy
from tests.jobs.conftest import answer_with
from tests.search.scenes import WEATHER, WRONG_UNIT, weather_example

EXAMPLES = [weather_example(id=f"weather-{number}") for number in range(40)]
SAMPLED = parse_config({"select": {"by": "pass_rate", "samples": 2, "alpha": 0.5}, "evaluate": {"batch_sequences": 2}})
READ = parse_config({"select": {"by": "perplexity", "batch_tokens": 64}})  # less than an example: each is a batch


class Attempt:
    """One attempt at the stage; `checkpoint` outlives it. It is asked to stop after `stop_after` steps of progress."""

    def __init__(self, config: RunConfig, folder: Path, stop_after: int | None = None, *, seed: int = 17) -> None:
        self.config, self.folder, self.seed = config, folder, seed
        self.output, self.scratch, self.checkpoint = folder / "output", folder / "scratch", folder / "checkpoint"
        for made in (self.output, self.scratch):
            made.mkdir(parents=True, exist_ok=True)
        self.left = stop_after
        self.saves: list[int] = []
        self.token_count = 0

    def read(self, *_: Any) -> list[Example]:
        return EXAMPLES if self.config is SAMPLED else EXAMPLES[:6]

    def path(self, role: str, _name: str) -> Path | None:
        return base_model_path() if role == "data" else None

    def working(self) -> None: ...

    def progress(self, *_: Any) -> None:
        if self.left is not None:
            self.left -= 1

    def raise_if_stopped(self) -> None:
        if self.left is not None and self.left <= 0:
            raise Interrupted("asked to stop")

    def latest_checkpoint(self) -> Path | None:
        return self.checkpoint if self.checkpoint.exists() else None

    def save_checkpoint(self, folder: Path, done: int) -> None:
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        shutil.copytree(folder, self.checkpoint)
        self.saves.append(done)

    def tokens(self, count: int) -> None:
        self.token_count += count

    def write(self, name: str, rows: Sequence[Score]) -> None:
        (self.output / name).write_text("".join(f"{row.model_dump_json()}\n" for row in rows))

    def count(self, **_: int) -> None: ...

    def metrics(self, _figures: dict[str, int]) -> None: ...

    def run(self) -> str:
        stage: Any = self
        score.score(stage)
        return (self.output / "scores.jsonl").read_text()


class Forgetful(ScriptedPolicy):
    """Its answers depend on all that it was asked since it forgot, as the rounding of a real one does."""

    asked = 0

    def forget(self) -> None:
        self.asked = 0

    async def sample(self, prompt_ids: Sequence[int], *, seed: int, **more: Any) -> list[Sample]:
        self.asked += 1
        return await super().sample(prompt_ids, seed=seed + self.asked, **more)

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        self.asked += 1
        return [-0.01 * self.asked] * len(continuation_ids)


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt_tokens = len(render_prompt(byte_tokenizer(), EXAMPLES[0]))
    answer_with(monkeypatch, score, lambda: Forgetful(byte_tokenizer(), [WEATHER, WRONG_UNIT], prompt_tokens=prompt_tokens))
    monkeypatch.setattr("jobs.checkpoints.WORK_PER_SAVE", 0.0)


@pytest.mark.parametrize("stops", [[1], [9], [20, 1, 12], [12] * 3])
def test_pass_rates_do_not_depend_on_where_they_were_stopped(tmp_path: Path, stops: list[int]) -> None:
    undisturbed = Attempt(SAMPLED, tmp_path / "whole").run()
    for stop in stops:
        attempt = Attempt(SAMPLED, tmp_path / "parts", stop)
        with pytest.raises(Interrupted):
            attempt.run()
    assert Attempt(SAMPLED, tmp_path / "parts").run() == undisturbed


def test_a_stop_does_not_wait_for_a_server_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, answers = Attempt(SAMPLED, tmp_path), []

    class Silent(Forgetful):
        async def sample(self, prompt_ids: Sequence[int], *, seed: int, **more: Any) -> list[Sample]:
            attempt.left = 0
            await asyncio.sleep(5)
            answers.append(seed)
            return await super().sample(prompt_ids, seed=seed, **more)

    prompt_tokens = len(render_prompt(byte_tokenizer(), EXAMPLES[0]))
    answer_with(monkeypatch, score, lambda: Silent(byte_tokenizer(), [WEATHER], prompt_tokens=prompt_tokens))
    with pytest.raises(Interrupted):
        attempt.run()
    assert not answers


def test_a_score_says_what_its_samples_cost(tmp_path: Path) -> None:
    costs = {len(byte_tokenizer().encode(text)) + 1 for text in (WEATHER, WRONG_UNIT)}
    sums = {first + second for first in costs for second in costs}
    rows = [Score.model_validate_json(line) for line in Attempt(SAMPLED, tmp_path / "sampled").run().splitlines()]
    assert {row.sampled_tokens for row in rows} <= sums
    read = [Score.model_validate_json(line) for line in Attempt(READ, tmp_path / "read").run().splitlines()]
    assert {row.sampled_tokens for row in read} == {0}


def test_each_iteration_draws_its_own_samples_and_its_own_lots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the seed of the stage, not of the run."""

    def scored(config: RunConfig, seed: int, *answers: str) -> dict[str, tuple[float | None, bool]]:
        policy = ScriptedPolicy(byte_tokenizer(), answers, prompt_tokens=len(render_prompt(byte_tokenizer(), EXAMPLES[0])))
        answer_with(monkeypatch, score, lambda: policy)
        rows = map(Score.model_validate_json, Attempt(config, tmp_path / f"{seed}{len(answers)}", seed=seed).run().splitlines())
        return {row.example_id: (row.pass_rate, row.selected) for row in rows}

    rates = [scored(SAMPLED, seed, WEATHER, WRONG_UNIT) for seed in (17, 18)]
    both = rates[0].keys() & rates[1].keys()
    assert [rates[0][name][0] for name in both] != [rates[1][name][0] for name in both]
    everything = [score.hardest(_unsolved(), {"calls": 20}, seed=seed) for seed in (17, 18)]
    for seed, expected in zip((17, 18), everything, strict=True):
        found = {name for name, (_, selected) in scored(SAMPLED, seed, WRONG_UNIT).items() if selected}
        assert found == {row.example_id for row in expected if row.selected}


def _unsolved() -> list[Score]:
    return [Score(example_id=example.id, stratum="calls", pass_rate=0.0) for example in EXAMPLES]


def test_a_scoring_that_is_stopped_again_and_again_gets_ahead(tmp_path: Path) -> None:
    """Blocks of eight examples, each attempt stopped in its second one."""
    for saved in (8, 16, 24):
        attempt = Attempt(SAMPLED, tmp_path, 12)
        with pytest.raises(Interrupted):
            attempt.run()
        assert attempt.saves == [saved]


def test_nothing_is_saved_when_nothing_is_left_to_measure(tmp_path: Path) -> None:
    attempt = Attempt(SAMPLED, tmp_path)
    measured = len(attempt.run().splitlines())
    assert attempt.saves == [*range(8, measured, 8)]


def test_what_was_measured_is_saved_when_the_engine_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempt(SAMPLED, tmp_path)
    monkeypatch.setattr("jobs.checkpoints.WORK_PER_SAVE", 1e9)

    def gone(*_: Any) -> None:
        attempt.left = (attempt.left or 0) + 1
        if attempt.left == 20:
            raise DependencyError("engine gone")

    monkeypatch.setattr(attempt, "progress", gone)
    monkeypatch.setattr(attempt, "raise_if_stopped", lambda: None)
    with pytest.raises(DependencyError):
        attempt.run()
    assert attempt.saves == [8, 16]


def test_perplexities_do_not_depend_on_where_they_were_stopped(tmp_path: Path) -> None:
    whole = Attempt(READ, tmp_path / "whole")
    undisturbed = whole.run()
    for _ in range(2):
        attempt = Attempt(READ, tmp_path / "parts", 2)
        with pytest.raises(Interrupted):
            attempt.run()
        assert attempt.saves
    last = Attempt(READ, tmp_path / "parts")
    assert last.run() == undisturbed
    assert len(last.saves) < len(whole.saves)
    assert last.token_count == whole.token_count
