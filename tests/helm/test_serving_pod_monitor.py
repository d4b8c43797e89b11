"""Prometheus reads vLLM's metrics."""

from __future__ import annotations

from tests.helm.rendering import POD_MONITOR, render, selects

SERVES = {"run": {"policy": {"backend": "vllm"}}, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}


def test_it_selects_the_vllm_pods_of_the_run() -> None:
    monitor = render(SERVES, "--api-versions", POD_MONITOR)["serving/pod-monitor.yaml"]
    pod = {"app.kubernetes.io/name": "itool", "app.kubernetes.io/component": "serving", "itool/run": "demo"}
    assert selects(monitor["spec"]["selector"], pod)
    assert not selects(monitor["spec"]["selector"], {**pod, "itool/run": "other"})
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_there_is_none_without_a_vllm_of_our_own() -> None:
    elsewhere = {**SERVES, "run": {"policy": {"backend": "vllm", "url": "http://vllm.example:8000"}}}
    for changes in (elsewhere, {"podMonitor": {"enabled": True}}):
        assert "serving/pod-monitor.yaml" not in render(changes, "--api-versions", POD_MONITOR)
