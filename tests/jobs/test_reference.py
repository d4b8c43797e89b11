from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itool.config import parse_config
from itool.records import Example, Message, PreferencePair
from itool.stages import StageId, inputs_of
from jobs import dpo

BUFFER = [Example(id="gold", messages=[Message(role="user", content="q")])]
SECOND = StageId(2, "dpo")


class FakeStage:
    """The second iteration's training on one pair; an input lies in a folder named after the stage that made it."""

    seed = 17
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

    def count(self, **_: int) -> None: ...


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
    assert (asked["adapter_in"], asked["reference"]) == (Path("i1/dpo/adapter"), folder)
