"""The check reaches S3 as the new values say, whatever the policies of the previous revision allow."""

from __future__ import annotations

from typing import Any

from tests.helm.network import CONTROLLER, RUN, STAGE, STRANGER, receives, sends
from tests.helm.rendering import render

TEMPLATE = "preflight/network-policy.yaml"
PREFLIGHT = {**RUN, "app.kubernetes.io/component": "preflight"}
MOVED: dict[str, Any] = {
    "run": {"store": {"endpoint_url": "http://s3.example:9999"}},
    "networkPolicy": {"extraEgress": [{"ports": [{"protocol": "TCP", "port": 8080}]}]},
}


def test_during_an_upgrade_it_reaches_an_s3_that_has_moved() -> None:
    before = {template: manifest for template, manifest in render().items() if template != TEMPLATE}
    during = before | {TEMPLATE: render(MOVED)[TEMPLATE]}
    assert not sends(before, PREFLIGHT, "10.1.2.3", 9999)
    assert sends(during, PREFLIGHT, "10.1.2.3", 9999)
    assert sends(during, PREFLIGHT, "10.1.2.3", 8080)
    for other in (CONTROLLER, STAGE):
        assert not sends(during, other, "10.1.2.3", 9999)


def test_it_opens_names_and_s3_and_nothing_else() -> None:
    alone = {TEMPLATE: render()[TEMPLATE]}
    assert sends(alone, PREFLIGHT, "10.96.0.10", 53, "UDP")
    assert sends(alone, PREFLIGHT, "10.1.2.3", 9000)
    assert not sends(alone, PREFLIGHT, "10.96.0.1", 443)
    assert not receives(alone, PREFLIGHT, STRANGER, 8000)


def test_it_comes_before_the_check_and_goes_with_it() -> None:
    rendered = render()
    annotations = rendered[TEMPLATE]["metadata"]["annotations"]
    assert annotations == rendered["preflight/config-map.yaml"]["metadata"]["annotations"]
    assert int(annotations["helm.sh/hook-weight"]) < int(rendered["preflight/job.yaml"]["metadata"]["annotations"]["helm.sh/hook-weight"])


def test_where_somebody_else_writes_the_policies_there_is_none() -> None:
    assert TEMPLATE not in render({"networkPolicy": {"enabled": False}})
