"""Every pod reaches S3, and nobody reaches the API server by the same opening."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.network import CONTROLLER, SERVING, STAGE, sends
from tests.helm.rendering import render


def with_endpoint(url: str | None, **policy: Any) -> dict[str, Any]:
    return {"run": {"store": {"endpoint_url": url}}, "networkPolicy": policy}


@pytest.mark.parametrize("pod", [CONTROLLER, STAGE, SERVING])
@pytest.mark.parametrize(("url", "port"), [("http://s3.example:9000", 9000), ("http://s3.example", 80), ("http://[fd00::9]:9001", 9001)])
def test_the_port_is_that_of_the_endpoint(pod: dict[str, str], url: str, port: int) -> None:
    rendered = render(with_endpoint(url))
    assert sends(rendered, pod, "10.1.2.3", port)
    assert not sends(rendered, pod, "10.1.2.3", port + 1)


def test_pods_may_have_an_endpoint_of_their_own() -> None:
    rendered = render({"run": {"kubernetes": {"store_endpoint_url": "http://s3.cluster:9999"}}})
    assert (sends(rendered, STAGE, "10.1.2.3", 9999), sends(rendered, STAGE, "10.1.2.3", 9000)) == (True, False)


def test_behind_a_service_the_ports_are_those_of_the_pods() -> None:
    rendered = render(with_endpoint("http://s3.cluster", store={"ports": [9000]}))
    assert (sends(rendered, STAGE, "10.1.2.3", 9000), sends(rendered, STAGE, "10.1.2.3", 80)) == (True, False)


@pytest.mark.parametrize("url", [None, "https://s3.example"])
def test_on_the_port_of_the_api_server_its_addresses_stay_closed(url: str | None) -> None:
    rendered = render(with_endpoint(url, apiServer={"cidrs": ["10.96.0.1/32", "192.168.7.0/28"]}))
    assert sends(rendered, STAGE, "52.216.0.1", 443)
    assert not sends(rendered, STAGE, "10.96.0.1", 443)
    assert not sends(rendered, STAGE, "192.168.7.5", 443)
    assert not sends(rendered, STAGE, "2600::1", 443)  # whose own address is unknown
    assert not sends(rendered, SERVING, "192.168.7.5", 6443)


def test_with_the_api_servers_ipv6_addresses_the_rest_of_ipv6_opens() -> None:
    rendered = render(with_endpoint(None, apiServer={"cidrs": ["fd00::1/128"]}))
    assert sends(rendered, STAGE, "2600::1", 443)
    assert not sends(rendered, STAGE, "fd00::1", 443)
    assert not sends(rendered, STAGE, "10.96.0.1", 443)


def test_named_peers_are_the_only_ones() -> None:
    rendered = render(with_endpoint(None, store={"peers": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}))
    assert (sends(rendered, STAGE, "10.1.0.9", 443), sends(rendered, STAGE, "10.2.0.9", 443)) == (True, False)
