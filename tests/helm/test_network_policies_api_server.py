"""The controller reaches the API server, and so does the test, which asks for the controller's rights. Nobody else does."""

from __future__ import annotations

import pytest

from tests.helm.network import CONTROLLER, RUN, SERVING, STAGE, sends
from tests.helm.rendering import render


@pytest.mark.parametrize("port", [443, 6443])
def test_only_the_controller_and_the_test_reach_it(port: int) -> None:
    rendered = render()
    reach = {pod["app.kubernetes.io/component"]: sends(rendered, pod, "10.96.0.1", port) for pod in (CONTROLLER, STAGE, SERVING)}
    assert reach == {"controller": True, "stage": False, "serving": False}
    assert sends(rendered, {**RUN, "app.kubernetes.io/component": "test"}, "10.96.0.1", port)
    assert not sends(rendered, {**RUN, "app.kubernetes.io/component": "preflight"}, "10.96.0.1", port)


def test_known_addresses_close_all_others() -> None:
    rendered = render({"networkPolicy": {"apiServer": {"cidrs": ["192.168.7.0/28"], "ports": [8443]}}})
    assert sends(rendered, CONTROLLER, "192.168.7.5", 8443)
    assert not sends(rendered, CONTROLLER, "10.1.2.3", 8443)
    assert not sends(rendered, CONTROLLER, "192.168.7.5", 443)
