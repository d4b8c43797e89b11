"""Every pod may ask for names."""

from __future__ import annotations

import pytest

from tests.helm.network import CONTROLLER, SERVING, STAGE, sends
from tests.helm.rendering import render


@pytest.mark.parametrize("pod", [CONTROLLER, STAGE, SERVING])
def test_names_are_asked_over_both_protocols(pod: dict[str, str]) -> None:
    assert sends(render(), pod, "10.96.0.10", 53, "UDP")
    assert sends(render(), pod, "10.96.0.10", 53, "TCP")


def test_the_servers_can_be_named() -> None:
    rendered = render({"networkPolicy": {"dnsPeers": [{"ipBlock": {"cidr": "10.96.0.10/32"}}]}})
    assert sends(rendered, STAGE, "10.96.0.10", 53, "UDP")
    assert not sends(rendered, STAGE, "8.8.8.8", 53, "UDP")
