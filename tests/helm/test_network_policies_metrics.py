"""Prometheus, where it is wanted, reads vLLM's port."""

from __future__ import annotations

from typing import Any

from tests.helm.network import SERVING, STRANGER, receives
from tests.helm.rendering import POD_MONITOR, render

VLLM: dict[str, Any] = {"run": {"policy": {"backend": "vllm"}}}


def test_only_the_named_peers_read_metrics() -> None:
    opened = render(
        {**VLLM, "podMonitor": {"enabled": True, "peers": [{"podSelector": {"matchLabels": STRANGER}}]}}, "--api-versions", POD_MONITOR
    )
    assert receives(opened, SERVING, STRANGER, 8000)
    assert not receives(opened, SERVING, {"app": "other"}, 8000)


def test_the_default_peer_is_the_namespace_monitoring() -> None:
    rendered = render({**VLLM, "podMonitor": {"enabled": True}}, "--api-versions", POD_MONITOR)
    (rule,) = rendered["network-policies/metrics.yaml"]["spec"]["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]


def test_without_a_pod_monitor_nobody_does() -> None:
    assert "network-policies/metrics.yaml" not in render(VLLM)
