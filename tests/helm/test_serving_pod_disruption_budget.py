"""A drain of nodes takes vLLM pods one after the other, and is never blocked."""

from __future__ import annotations

from tests.helm.rendering import render, selects

TEMPLATE = "serving/pod-disruption-budget.yaml"


def test_of_several_replicas_one_may_be_missing() -> None:
    budget = render({"run": {"policy": {"backend": "vllm"}, "kubernetes": {"serving": {"replicas": 2}}}})[TEMPLATE]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert selects(budget["selector"], {"app.kubernetes.io/name": "itool", "app.kubernetes.io/component": "serving", "itool/run": "demo"})


def test_a_single_replica_has_no_budget_that_would_block_a_drain() -> None:
    assert TEMPLATE not in render({"run": {"policy": {"backend": "vllm"}}})
