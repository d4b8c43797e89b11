"""Where a stage's start-up ends: when what comes next is its work; and that it can be stopped in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from itool.config import RunConfig
from itool.demo import base_model_path
from itool.train import sft
from itool.train.hooks import TrainingHooks, TrainingLog
from jobs import prepare, warmup


class WatchedStage:
    """A stage without inputs that notes when it begins to work."""

    config = RunConfig()
    seed = 1

    def __init__(self, output: Path) -> None:
        self.output = output
        self.events: list[str] = []

    def working(self) -> None:
        self.events.append("working")

    def read(self, *_: Any) -> list[Any]:
        return []

    def path(self, *_: Any) -> Path:
        return base_model_path()

    def latest_checkpoint(self) -> None: ...

    def __getattr__(self, _name: str) -> Any:
        return lambda *_, **__: None


def test_prepare_works_when_it_copies_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage: Any = WatchedStage(tmp_path)

    def materialise(*_: Any) -> None:
        stage.events.append("materialise")
        raise InterruptedError

    monkeypatch.setattr(prepare, "materialise", materialise)
    with pytest.raises(InterruptedError):
        prepare.prepare(stage)
    assert stage.events == ["working", "materialise"]


def test_a_training_works_when_the_trainer_has_loaded_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage: Any = WatchedStage(tmp_path)

    def train_sft(*_: Any, hooks: TrainingHooks, **__: Any) -> TrainingLog:
        stage.events.append("load")
        hooks.on_loaded()
        return TrainingLog()

    monkeypatch.setattr(sft, "train_sft", train_sft)
    warmup.warmup(stage)
    assert stage.events == ["load", "working"]


def test_process_1_of_a_container_hears_a_stop_signal_before_its_work_begins() -> None:
    pretends = "import os, signal; pid = os.getpid(); os.getpid = lambda: 1"
    stopped = subprocess.run([sys.executable, "-c", f"{pretends}; import jobs; os.kill(pid, signal.SIGTERM)"], check=False)
    assert stopped.returncode == 75
