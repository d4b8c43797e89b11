"""Stage pods ask the run's vLLM."""

from __future__ import annotations

import pytest

from tests.helm.network import CONTROLLER, SERVING, STAGE, STRANGER, sends
from tests.helm.rendering import render

VLLM = {"run": {"policy": {"backend": "vllm"}}}


def test_only_stage_pods_ask_and_only_the_runs_own_vllm() -> None:
    rendered = render(VLLM)
    assert sends(rendered, STAGE, SERVING, 8000)
    assert not sends(rendered, STAGE, SERVING, 8001)
    assert not sends(rendered, STAGE, {**SERVING, "itool/run": "other"}, 8000)
    assert not sends(rendered, STAGE, STRANGER, 8000)
    assert not sends(rendered, CONTROLLER, SERVING, 8000)


@pytest.mark.parametrize("policy", [{"backend": "embedded"}, {"backend": "vllm", "url": "http://vllm.example:8000"}])
def test_without_a_vllm_of_our_own_there_is_no_opening(policy: dict[str, str]) -> None:
    assert "network-policies/stage.yaml" not in render({"run": {"policy": policy}})
