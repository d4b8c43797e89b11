"""What Helm says after an installation. Helm renders it only with a cluster."""

from __future__ import annotations

import pytest

from tests.helm.test_api_server import dry_run

pytestmark = pytest.mark.cluster


def test_the_next_commands_are_those_of_the_release() -> None:
    notes = dry_run(run={"run": "first", "iterations": 2}).stdout.partition("NOTES:")[2]
    for command in (
        "logs -f job/demo-controller-1",
        "where this machine does not reach S3 at http://s3.example:9000, AWS_ENDPOINT_URL",
        "itoolctl status first --watch --root s3://bucket/prefix\n",
        "itoolctl report first --root s3://bucket/prefix\n",
        "test demo",
        "upgrade demo CHART --reset-then-reuse-values --set run.iterations=3",
        "uninstall demo",
    ):
        assert command in notes
    assert "NOTE: networkPolicy" not in notes


def test_a_vllm_elsewhere_needs_an_opening() -> None:
    notes = dry_run(run={"policy": {"backend": "vllm", "url": "http://vllm.example:8000"}}).stdout.partition("NOTES:")[2]
    assert "NOTE: networkPolicy.extraEgress is empty: stage pods reach run.policy.url = http://vllm.example:8000 only if" in notes
