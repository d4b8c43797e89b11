"""Nobody may talk to anybody, unless another policy says so."""

from __future__ import annotations

import pytest

from tests.helm.network import CONTROLLER, RUN, SERVING, STAGE, STRANGER, receives, sends
from tests.helm.rendering import render, selects

TEST = {**RUN, "app.kubernetes.io/component": "test"}
PREFLIGHT = {**RUN, "app.kubernetes.io/component": "preflight"}


@pytest.mark.parametrize("pod", [CONTROLLER, STAGE, SERVING, TEST, PREFLIGHT])
def test_it_selects_every_pod_of_the_run_in_both_directions(pod: dict[str, str]) -> None:
    spec = render()["network-policies/default-deny.yaml"]["spec"]
    assert selects(spec["podSelector"], pod)
    assert (spec["policyTypes"], set(spec)) == (["Ingress", "Egress"], {"podSelector", "policyTypes"})
    assert not sends(render(), pod, "8.8.8.8", 80)
    assert not sends(render(), pod, STRANGER, 8080)
    assert not receives(render(), pod, STRANGER, 8000)


def test_the_pods_of_other_runs_and_of_others_are_left_alone() -> None:
    selector = render()["network-policies/default-deny.yaml"]["spec"]["podSelector"]
    assert not selects(selector, {**STAGE, "itool/run": "other"})
    assert not selects(selector, STRANGER)


def test_the_policies_can_be_left_to_somebody_else() -> None:
    assert "NetworkPolicy" not in {manifest["kind"] for manifest in render({"networkPolicy": {"enabled": False}}).values()}
