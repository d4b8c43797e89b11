"""The loop with a real vLLM server that the stages start and stop themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from itool.errors import DependencyError
from itool.policy.server import find_vllm_python
from tests.jobs.conftest import copy_of, iterate, itoolctl

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1500)]


def test_an_iteration_with_vllm_reuses_the_warm_up_and_learns_from_its_own_search(finished: Path, tmp_path: Path) -> None:
    try:
        find_vllm_python()
    except DependencyError as error:
        pytest.skip(str(error))
    folder = copy_of(finished, tmp_path)
    little: dict[str, Any] = {"select__alpha": 0.1, "search__root_samples": 4, "search__simulations": 1, "evaluate__pass_examples": 4}
    done = iterate(folder, "--run", "served", policy__backend="vllm", reuse_from="demo", timeout_seconds=1400, **little)
    assert "i0-warmup: starting" not in done.stderr
    report = json.loads(itoolctl("report", "served", "--output", "json", cwd=folder).stdout)
    assert report["iterations"][0]["trees"] > 0
    assert [e["iteration"] for e in report["evaluations"] if e["dataset"] == "held_out"] == [0, 1]
