"""What the training stages hand to their trainers, and what they tell of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itool.config import parse_config
from itool.records import Example, Message, PreferencePair
from itool.stages import StageId, inputs_of
from itool.train.hooks import TrainingLog
from jobs import dpo, training, warmup

BUFFER = [Example(id="gold", messages=[Message(role="user", content="")])]
SECOND = StageId(2, "dpo")


class FakeStage:
    """The second iteration's training on one pair; an input lies in a folder named after the stage that made it."""

    seed = 5
    output = Path("output")

    def __init__(self, reference: str) -> None:
        self.config = parse_config({"iterations": 2, "dpo": {"reference": reference, "replay_fraction": 0}})
        self.inputs = inputs_of(self.config, SECOND)

    def has(self, role: str) -> bool:
        return role in self.inputs

    def path(self, role: str, name: str) -> Path:
        return Path(str(self.inputs[role]), name)

    def read(self, kind: type, _role: str, _name: str) -> list[Any]:
        return [SimpleNamespace(example_id="gold")] if kind is PreferencePair else BUFFER

    def count(self, **counts: int) -> None:
        self.counts = counts


@pytest.mark.parametrize(("reference", "folder"), [("previous", None), ("warmup", Path("i0/warmup/adapter"))])
def test_the_adapter_before_it_is_trained_against_itself_or_against_the_warm_ups(
    reference: str, folder: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("itool.train.preference.train_preferences", lambda *_given, **how: asked.update(how))
    for name in ("load_tokenizer", "training_hooks", "save_training"):
        monkeypatch.setattr(dpo, name, lambda *_: None)
    stage: Any = FakeStage(reference)
    dpo.dpo(stage)
    assert (asked["adapter_in"], asked["reference"], asked["seed"]) == (Path("i1/dpo/adapter"), folder, 5)
    assert stage.counts == {"incoming": 1, "kept": 1}


def test_the_warm_up_goes_from_easy_to_hard_with_the_seed_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(name, level) for name in ("one", "two") for level in ("hard", "easy", "medium")]
    examples = [Example(id=f"{level} {name}", messages=[Message(role="user", content="")], difficulty=level) for name, level in rows]
    stage: Any = SimpleNamespace(
        seed=5,
        output=Path("output"),
        config=parse_config({}),
        path=lambda *_: Path("model"),
        read=lambda *_: examples,
        count=lambda **_: None,
    )
    asked: dict[str, Any] = {}
    monkeypatch.setattr("itool.train.sft.train_sft", lambda _model, phases, **how: asked.update(how, phases=phases))
    monkeypatch.setattr(warmup, "token_sequences", lambda _tokenizer, some: [example.id for example in some])
    for name in ("load_tokenizer", "training_hooks", "save_training"):
        monkeypatch.setattr(warmup, name, lambda *_: None)
    warmup.warmup(stage)
    assert list(asked["phases"].items()) == [(level, [f"{level} one", f"{level} two"]) for level in ("easy", "medium", "hard")]
    assert asked["seed"] == 5


def test_a_training_goes_on_from_its_stages_checkpoint_and_tells_what_it_cost() -> None:
    told: dict[str, Any] = {}
    stage: Any = SimpleNamespace(
        config=parse_config({}),
        should_stop=lambda: True,
        save_checkpoint=lambda *_: None,
        latest_checkpoint=lambda: Path("newest"),
        discard_checkpoints=lambda: None,
        working=lambda: None,
        write=lambda name, rows: told.update({name: rows}),
        metrics=told.update,
        tokens=lambda count: told.update(tokens=count),
    )
    hooks = training.training_hooks(stage)
    assert (hooks.resume_from, hooks.should_stop()) == (Path("newest"), True)
    assert (hooks.save_checkpoint, hooks.discard_checkpoints) == (stage.save_checkpoint, stage.discard_checkpoints)
    training.save_training(stage, TrainingLog([{"update": 1}, {"update": 2}], tokens=70, seconds=1.5))
    assert told == {"training.jsonl": [{"update": 1}, {"update": 2}], "updates": 2, "training_seconds": 1.5, "tokens": 70}
