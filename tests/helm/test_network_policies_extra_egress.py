"""What else the pods of a run must reach: a hub, an identity service, a vLLM of somebody else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.network import STAGE, sends
from tests.helm.rendering import refusal, render

HUB = {"ports": [{"protocol": "TCP", "port": 443}], "to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}


def test_the_given_rules_and_no_more_are_open() -> None:
    rendered = render({"networkPolicy": {"extraEgress": [HUB]}})
    assert sends(rendered, STAGE, "52.1.2.3", 443)
    assert not sends(rendered, STAGE, "10.96.0.1", 443)


def test_without_a_rule_there_is_no_policy() -> None:
    assert "network-policies/extra-egress.yaml" not in render()


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"port": 443}, "0': additional properties 'port' not allowed"),
        ({}, "0': minProperties: got 0, want 1"),
        ({"to": []}, "0/to': minItems: got 0, want 1"),
        ({"to": None}, "0/to': got null, want array"),
        ({"to": [{}]}, "0/to/0': minProperties: got 0, want 1"),
        ({"to": [{"ipblock": {"cidr": "10.0.0.0/8"}}]}, "0/to/0': additional properties 'ipblock' not allowed"),
        ({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}, "0/to/0': maxProperties: got 2, want 1"),
        (
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]},
            "0/to/0/ipBlock/cidr': '10.0.0.0/33' does not match pattern '^an address range, like 10.0.0.0/8 or fd00::/8$'",
        ),
        ({"to": [{"podSelector": {"matchLabel": {}}}]}, "0/to/0/podSelector': additional properties 'matchLabel' not allowed"),
        ({"ports": [{}]}, "0/ports/0': minProperties: got 0, want 1"),
        ({"ports": [{"port": "443"}]}, "0/ports/0/port': '443' does not match pattern"),
        ({"ports": [{"endPort": 443}]}, "0/ports/0': properties 'port' required, if 'endPort' exists"),
        ({"ports": [{"protocol": "tcp"}]}, "0/ports/0/protocol': 'tcp' does not match pattern '^(TCP|UDP|SCTP)$'"),
    ],
)
def test_a_rule_that_would_open_more_than_it_seems_to_is_refused(rule: dict[str, Any], line: str) -> None:
    assert f"- at '/networkPolicy/extraEgress/{line}" in refusal({"networkPolicy": {"extraEgress": [rule]}})


def test_a_rule_may_say_all_that_kubernetes_knows() -> None:
    selector = {"matchLabels": {"example.com/app": "a"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["c"]}]}
    rule = {
        "to": [{"namespaceSelector": {}, "podSelector": selector}, {"ipBlock": {"cidr": "fd00::/8", "except": ["fd00::1/128"]}}],
        "ports": [{"port": "https"}, {"protocol": "UDP", "port": 1000, "endPort": 2000}],
    }
    assert render({"networkPolicy": {"extraEgress": [rule]}})["network-policies/extra-egress.yaml"]["spec"]["egress"] == [rule]
