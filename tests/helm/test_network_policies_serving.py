"""vLLM answers the run's stages, and nobody else: its API and its metrics ask for no password."""

from __future__ import annotations

from tests.helm.network import CONTROLLER, SERVING, STAGE, STRANGER, receives
from tests.helm.rendering import render

VLLM = {"run": {"policy": {"backend": "vllm"}}}


def test_only_stage_pods_of_the_run_are_answered() -> None:
    rendered = render(VLLM)
    assert receives(rendered, SERVING, STAGE, 8000)
    assert not receives(rendered, SERVING, STAGE, 8001)
    for other in (STRANGER, CONTROLLER, SERVING, {**STAGE, "itool/run": "other"}, "10.1.2.3"):
        assert not receives(rendered, SERVING, other, 8000)


def test_without_a_vllm_of_our_own_there_is_no_opening() -> None:
    assert "network-policies/serving.yaml" not in render()
