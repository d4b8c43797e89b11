"""What else the pods of a run must reach: a hub, an identity service, a vLLM of somebody else."""

from __future__ import annotations

from tests.helm.network import STAGE, sends
from tests.helm.rendering import render

HUB = {"ports": [{"protocol": "TCP", "port": 443}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}


def test_the_given_rules_and_no_more_are_open() -> None:
    rendered = render({"networkPolicy": {"extraEgress": [HUB]}})
    assert sends(rendered, STAGE, "52.1.2.3", 443)
    assert not sends(rendered, STAGE, "10.96.0.1", 443)


def test_without_a_rule_there_is_no_policy() -> None:
    assert "network-policies/extra-egress.yaml" not in render()
