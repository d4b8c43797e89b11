"""The GPU computes what the CPU does, and the same twice. Skipped without a CUDA device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of three runs: on the CPU, and twice on the GPU with the CPU's adapter."""
    folders = {name: tmp_path_factory.mktemp("gpu") / name for name in ("cpu", "gpu", "again")}
    for name, folder in folders.items():
        given, hidden = ("-", {"CUDA_VISIBLE_DEVICES": ""}) if name == "cpu" else (str(folders["cpu"] / "adapter"), {})
        subprocess.run([sys.executable, "-m", "tests.gpu.compute", given, str(folder)], check=True, cwd=ROOT, env={**os.environ, **hidden})
    return folders


@pytest.fixture
def results(computed: dict[str, Path]) -> Callable[[str], dict[str, Any]]:
    return lambda name: dict(json.loads((computed[name] / "results.json").read_text()))


def test_each_run_was_where_it_should_be(results: Callable[[str], dict[str, Any]]) -> None:
    assert [results(name)["device"] for name in ("cpu", "gpu", "again")] == ["cpu", "cuda", "cuda"]


def test_perplexities_and_log_probabilities_are_the_cpus(results: Callable[[str], dict[str, Any]]) -> None:
    cpu, gpu = results("cpu"), results("gpu")
    assert gpu["perplexities"] == pytest.approx(cpu["perplexities"], rel=1e-4)
    for one, other in zip(cpu["logprobs"], gpu["logprobs"], strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def test_samples_are_the_cpus_but_for_rounding(results: Callable[[str], dict[str, Any]]) -> None:
    """The random numbers are the same; a token changes only where its threshold lies within rounding of a border."""
    pairs = [
        (one, other)
        for ours, theirs in zip(results("cpu")["samples"], results("gpu")["samples"], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    assert sum(one == other for one, other in pairs) >= 0.9 * len(pairs)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_training_follows_the_cpus_losses(kind: str, results: Callable[[str], dict[str, Any]]) -> None:
    losses = results("gpu")[kind]
    assert losses == pytest.approx(results("cpu")[kind], rel=1e-3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter", ["adapter", "preferred"])
def test_training_twice_gives_the_same_bytes(adapter: str, computed: dict[str, Path]) -> None:
    once, again = ((computed[name] / adapter / WEIGHTS).read_bytes() for name in ("gpu", "again"))
    assert once == again


def test_asking_twice_gives_the_same(results: Callable[[str], dict[str, Any]]) -> None:
    assert results("gpu")["samples"] == results("again")["samples"]
    assert results("gpu")["perplexities"] == results("again")["perplexities"]
