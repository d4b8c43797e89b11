"""What Helm says after an installation. Helm renders it only with a cluster."""

from __future__ import annotations

import pytest

from tests.helm.test_api_server import dry_run

pytestmark = pytest.mark.cluster


def test_the_next_commands_are_those_of_the_release() -> None:
    notes = dry_run(run={"run": "first", "iterations": 2}).stdout.partition("NOTES:")[2]
    for command in (
        "logs -f job/demo-controller-1",
        "itoolctl status first --watch --backend kubernetes --root s3://bucket/prefix",
        "test demo",
        "upgrade demo CHART --reset-then-reuse-values --set run.iterations=3",
        "uninstall demo",
    ):
        assert command in notes
    assert "NOTE: networkPolicy" not in notes


def test_a_vllm_elsewhere_needs_an_opening() -> None:
    notes = dry_run(run={"policy": {"backend": "vllm", "url": "http://vllm.example:8000"}}).stdout.partition("NOTES:")[2]
    assert "NOTE: networkPolicy.extraEgress is empty: stage pods reach run.policy.url = http://vllm.example:8000 only if" in notes
