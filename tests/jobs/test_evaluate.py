"""What `evaluate` measures, and what it keeps when it is stopped, on policies that answer from a script."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from itool.config import parse_config
from itool.data.chat import render_prompt
from itool.errors import DependencyError, Interrupted
from itool.evaluate.report import build_report
from itool.evaluate.report_inputs import ReportInputs
from itool.policy.protocol import Sample
from itool.records import Example, PassCount, Prediction, ToolCall
from itool.stages import StageId
from jobs import evaluate
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import ScriptedPolicy
from tests.jobs.conftest import answer_with
from tests.search.scenes import WEATHER, weather_example

EASY = [weather_example(id=f"easy-{number}") for number in range(20)]
HARD = [example.model_copy(update={"id": f"hard-{number}", "calls": [ToolCall(name="get_weather")]}) for number, example in enumerate(EASY)]
BLOCKS_OF_FOUR: dict[str, Any] = {"batch_sequences": 2, "pass_k": [2], "pass_examples": 3}
ENDS_OF_BLOCKS = (4, 8, 9, 13, 14, 16, 17, 19, 21)
"""Results after which a block of 9 held-out and 5 validation examples, of 3 pass counts and 5 perplexities (two at once) is done."""


class FolderStage:
    """A stage whose checkpoints lie in a folder that its attempts share; `stop_after` results it is asked to stop."""

    id = StageId(1, "evaluate")

    def __init__(self, folder: Path, sets: dict[str, list[Example]], *, stop_after: int = 999, **settings: Any) -> None:
        self.config = parse_config({"model": {"context_tokens": 2000, "max_response_tokens": 60}, "evaluate": settings})
        self.checkpoint, self.sets, self.stop_after = folder / "saved", sets, stop_after
        self.scratch = folder / f"attempt-{len(list(folder.iterdir()))}"
        self.scratch.mkdir()
        self.written: dict[str, Any] = {}
        self.counted_tokens = 0
        self.shown: list[tuple[int, int]] = []

    def read(self, _kind: Any, _role: str, name: str) -> list[Example]:
        return self.sets[name.removesuffix(".jsonl")]

    def write(self, name: str, records: Iterable[Any]) -> None:
        self.written[name] = [record.model_dump_json() for record in records]

    def write_json(self, name: str, document: Any) -> None:
        self.written[name] = document

    def working(self) -> None: ...

    def count(self, **_: int) -> None: ...

    def metrics(self, _figures: Any) -> None: ...

    def tokens(self, count: int) -> None:
        self.counted_tokens += count

    def progress(self, done: int, total: int, _unit: str) -> None:
        self.shown.append((done, total))

    def should_stop(self) -> bool:
        return len(self.shown) >= self.stop_after

    def raise_if_stopped(self) -> None:
        if self.should_stop():
            raise Interrupted("asked to stop")

    def save_checkpoint(self, folder: Path, _done: int) -> None:
        shutil.copytree(folder, self.checkpoint, dirs_exist_ok=True)
        (self.checkpoint / "tokens").write_text(str(self.counted_tokens))

    def latest_checkpoint(self) -> Path | None:
        if not self.checkpoint.exists():
            return None
        self.counted_tokens = int((self.checkpoint / "tokens").read_text())
        return self.checkpoint


class Sociable(ScriptedPolicy):
    """Answers by how much it was asked since it last forgot: as the rounding of a batch depends on who else is in it."""

    remembered = 0

    async def sample(self, prompt_ids: Sequence[int], **asked: Any) -> list[Sample]:
        self.remembered += 1
        answers = await super().sample(prompt_ids, **asked)
        return [Sample(answer.token_ids[: self.remembered], answer.logprobs[: self.remembered], finished=False) for answer in answers]

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        self.remembered += 1
        return [logprob * self.remembered for logprob in await super().logprobs(prompt_ids, continuation_ids)]

    def forget(self) -> None:
        self.remembered = 0

    @property
    def asked(self) -> int:
        return len(self.requests) + len(self.logprob_requests)


SCRIPT: dict[str, Any] = {"answers": [WEATHER], "prompt_tokens": len(render_prompt(byte_tokenizer(), EASY[0]))}


def evaluate_with(stage: Any, policy: ScriptedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, evaluate, lambda: policy)
    evaluate.evaluate(stage)


def test_pass_at_k_is_of_examples_from_all_over_the_file_and_says_of_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is sorted by difficulty would else give only its easy ones."""
    stage = FolderStage(tmp_path, {"held_out": [*EASY, *HARD], "validation": []}, pass_k=[1], pass_examples=12)
    evaluate_with(stage, ScriptedPolicy(byte_tokenizer(), **SCRIPT), monkeypatch)
    found = stage.written["metrics.json"]["held_out"]
    assert found["pass_examples"] == 12
    low, high = found["pass_at_k_ci95"]["1"]
    assert 0 < low < found["pass_at_k"]["1"] < high < 1


def test_the_ground_truths_of_the_validation_set_are_scored_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = EASY[1].model_copy(update={"response": None})
    stage = FolderStage(tmp_path, {"held_out": EASY[:3], "validation": [EASY[0], checked]})
    evaluate_with(stage, Sociable(byte_tokenizer(), **SCRIPT), monkeypatch)
    rows = [json.loads(line) for line in stage.written["perplexities.jsonl"]]
    assert {row["example_id"]: row["perplexity"] for row in rows} == {"easy-0": pytest.approx(math.exp(0.1))}
    assert stage.written["metrics.json"]["perplexity"] == {"count": 1, "geometric_mean": pytest.approx(math.exp(0.1))}


def test_the_figures_that_are_stored_are_those_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = FolderStage(tmp_path, {"held_out": [*EASY[:5], *HARD[:5]], "validation": []}, pass_k=[1, 2], pass_examples=4)
    evaluate_with(stage, ScriptedPolicy(byte_tokenizer(), **SCRIPT), monkeypatch)
    stored = {name: [json.loads(line) for line in lines] for name, lines in stage.written.items() if name.endswith(".jsonl")}
    predictions = [Prediction.model_validate(row) for row in stored["held_out.jsonl"]]
    counts = [PassCount.model_validate(row) for row in stored["pass_counts.jsonl"]]
    [shown] = build_report(
        ReportInputs(config=stage.config, predictions={(1, "held_out"): predictions}, pass_counts={(1, "held_out"): counts})
    ).evaluations
    assert stage.written["metrics.json"]["held_out"].items() <= shown.model_dump(mode="json").items()
    assert "validation" not in stage.written["metrics.json"], "what was not measured is no figure"


@pytest.mark.parametrize("stop_after", range(1, 22))
def test_a_stopped_evaluation_goes_on_as_if_it_had_not_been(stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PERPLEXITIES_AT_ONCE", 2)
    sets = {"held_out": EASY[:9], "validation": HARD[:5]}
    undisturbed = FolderStage(tmp_path, sets, **BLOCKS_OF_FOUR)
    everything, some, rest = (Sociable(byte_tokenizer(), **SCRIPT) for _ in range(3))
    evaluate_with(undisturbed, everything, monkeypatch)
    shutil.rmtree(undisturbed.checkpoint)
    with pytest.raises(Interrupted):
        evaluate_with(FolderStage(tmp_path, sets, stop_after=stop_after, **BLOCKS_OF_FOUR), some, monkeypatch)
    resumed = FolderStage(tmp_path, sets, **BLOCKS_OF_FOUR)
    evaluate_with(resumed, rest, monkeypatch)
    assert (resumed.written, resumed.counted_tokens) == (undisturbed.written, undisturbed.counted_tokens)
    assert rest.asked < everything.asked - stop_after + 4, "only the block in which it was stopped is measured again"
    assert stop_after not in ENDS_OF_BLOCKS or some.asked == stop_after, "between blocks a stop is seen before anything is asked"
    assert undisturbed.shown == [(done, 22) for done in range(1, 23)]
    assert resumed.shown == undisturbed.shown[-len(resumed.shown) :]


def test_an_evaluation_whose_engine_is_gone_keeps_its_finished_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def break_down(_prompt: Sequence[int]) -> None:
        asked.append(1)
        if len(asked) > 10:
            raise DependencyError("the engine is gone")

    sets = {"held_out": EASY, "validation": []}
    breaking, lasting = (ScriptedPolicy(byte_tokenizer(), **SCRIPT, **hook) for hook in ({"before_sample": break_down}, {}))
    with pytest.raises(DependencyError):
        evaluate_with(FolderStage(tmp_path, sets, batch_sequences=2), breaking, monkeypatch)
    evaluate_with(FolderStage(tmp_path, sets, batch_sequences=2), lasting, monkeypatch)
    assert len(lasting.requests) == len(EASY) - 8
