"""What a set of NetworkPolicies lets through, as Kubernetes defines it: the union of the rules of every policy that selects the pod."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from itool.cluster.objects import COMPONENT_LABEL, NAME_LABEL, RUN_LABEL, STAGE_LABEL
from itool.cluster.pods import labels
from itool.config import RunConfig
from tests.helm.rendering import Manifests, selects

RUN = {NAME_LABEL: "itool", RUN_LABEL: "demo"}
CONTROLLER = {**RUN, COMPONENT_LABEL: "controller"}
STAGE = labels(RunConfig(), "stage", {STAGE_LABEL: "generate"})
SERVING = labels(RunConfig(), "serving")
STRANGER = {"app.kubernetes.io/name": "web"}

Place = dict[str, str] | str
"""The labels of a pod of the same namespace, or an address outside."""


def sends(manifests: Manifests, sender: dict[str, str], to: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether a pod with these labels may open a connection."""
    return _allowed(manifests, "Egress", sender, to, {"protocol": protocol, "port": port})


def receives(manifests: Manifests, receiver: dict[str, str], source: Place, port: int) -> bool:
    """Whether a connection to a pod with these labels is let in."""
    return _allowed(manifests, "Ingress", receiver, source, {"protocol": "TCP", "port": port})


def _allowed(manifests: Manifests, direction: str, pod: dict[str, str], other: Place, port: dict[str, Any]) -> bool:
    policies = list(_policies(manifests, direction, pod))
    side = "to" if direction == "Egress" else "from"
    rules = [rule for policy in policies for rule in policy.get(direction.lower(), [])]
    return not policies or any(port in rule.get("ports", [port]) and _peers(rule.get(side), other) for rule in rules)


def _policies(manifests: Manifests, direction: str, pod: dict[str, str]) -> Iterator[dict[str, Any]]:
    for manifest in manifests.values():
        if (
            manifest["kind"] == "NetworkPolicy"
            and direction in manifest["spec"]["policyTypes"]
            and selects(manifest["spec"]["podSelector"], pod)
        ):
            yield manifest["spec"]


def _peers(peers: list[dict[str, Any]] | None, other: Place) -> bool:
    return peers is None or any(_peer(peer, other) for peer in peers)


def _peer(peer: dict[str, Any], other: Place) -> bool:
    if "ipBlock" not in peer:
        return isinstance(other, dict) and "namespaceSelector" not in peer and selects(peer["podSelector"], other)
    networks = [ipaddress.ip_network(text) for text in [peer["ipBlock"]["cidr"], *peer["ipBlock"].get("except", [])]]
    return isinstance(other, str) and [ipaddress.ip_address(other) in network for network in networks] == [True] + [False] * (
        len(networks) - 1
    )
