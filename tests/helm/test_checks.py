"""What the schema cannot say: a line that names the key, the value and the remedy, before anything is created."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from tests.helm.rendering import POD_MONITOR, refusal, render


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"run": {"root": "runs"}}, 'run.root = "runs" is a folder, which pods do not share; set run.root to s3://bucket/prefix'),
        ({"run": {"root": ""}}, "at '/run/root': '' does not match pattern '^a text that is not empty$'"),
        ({"run": {"root": "gs://bucket/x"}}, 'run.root = "gs://bucket/x" is no S3 address; set run.root to s3://bucket/prefix'),
        ({"run": {"root": "s3://"}}, 'run.root = "s3://" names no bucket; set run.root to s3://bucket/prefix'),
        ({"run": {"root": "s3:///prefix"}}, 'run.root = "s3:///prefix" names no bucket; set run.root to s3://bucket/prefix'),
        (
            {"run": {"kubernetes": {"namespace": "other"}}},
            'run.kubernetes.namespace = "other", but the release goes to "training"; install with',
        ),
        (
            {"run": {"kubernetes": {"job_service_account": "x"}}},
            'run.kubernetes.job_service_account = "x", but the chart uses "demo-jobs"; set',
        ),
        (
            {"run": {"kubernetes": {"serving_service_account": "x"}}},
            'run.kubernetes.serving_service_account = "x", but the chart uses "demo-serv',
        ),
        ({"serviceAccounts": {"jobs": {"create": False}}}, "serviceAccounts.jobs.name is missing"),
        (
            {"podMonitor": {"enabled": True}},
            "podMonitor.enabled = true, but the cluster has no PodMonitor (monitoring.coreos.com/v1); install",
        ),
        (
            {"run": {"kubernetes": {"queue": "q"}}},
            'run.kubernetes.queue = "q", but the cluster has no Kueue (kueue.x-k8s.io); install it or set',
        ),
        (
            {"run": {"store": {"endpoint_url": "https://s3.example"}}},
            "networkPolicy.apiServer.cidrs = []: S3 on port [443] would open the API",
        ),
        (
            {"run": {"store": {"endpoint_url": None}}},
            "networkPolicy.apiServer.cidrs = []: S3 on port [443] would open the API server to every",
        ),
        (
            {"networkPolicy": {"store": {"ports": [9000, 6443]}}},
            "networkPolicy.apiServer.cidrs = []: S3 on port [9000,6443] would open the API",
        ),
    ],
)
def test_an_impossible_value_is_refused_with_its_remedy(changes: dict[str, Any], line: str) -> None:
    assert line in refusal(changes)


def test_a_cluster_that_is_too_old_is_refused() -> None:
    assert "Kubernetes v1.28 is too old: sidecar containers and retries per shard need 1.29; use a cluster of 1.29 or newer" in refusal(
        {}, "--kube-version", "1.28"
    )
    assert render({}, "--kube-version", "v1.29.0-eks-1")


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"run": {"kubernetes": {"namespace": "training", "job_service_account": "demo-jobs"}}}, ()),
        ({"run": {"kubernetes": {"job_service_account": "x"}}, "serviceAccounts": {"jobs": {"create": False, "name": "x"}}}, ()),
        ({"podMonitor": {"enabled": True}}, ("--api-versions", POD_MONITOR)),
        ({"run": {"kubernetes": {"queue": "q"}}}, ("--api-versions", "kueue.x-k8s.io/v1beta1")),
        ({"run": {"store": {"endpoint_url": None}}, "networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"]}}}, ()),
        ({"run": {"store": {"endpoint_url": None}}, "networkPolicy": {"store": {"peers": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}}}, ()),
        ({"run": {"store": {"endpoint_url": None}}, "networkPolicy": {"enabled": False}}, ()),
    ],
)
def test_what_agrees_is_accepted(changes: dict[str, Any], arguments: tuple[str, ...]) -> None:
    assert render(changes, *arguments)


@contextmanager
def cluster_with(*config_maps: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The arguments with which helm asks an API server that has these ConfigMaps in the release's namespace, and nothing else."""
    kinds = [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True}, {"name": "secrets", "kind": "Secret", "namespaced": True}]
    answers: dict[str, Any] = {"/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": kinds}}
    answers |= {f"/api/v1/namespaces/training/configmaps/{item['metadata']['name']}": item for item in config_maps}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}).encode()
            self.send_response(200 if found else 404)
            for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield "--dry-run=server", "--kubeconfig", "/dev/null", "--kube-apiserver", f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "training"}, "data": data}


def test_a_release_keeps_its_run() -> None:
    with cluster_with(
        config_map("demo-config", **{"config.yaml": yaml.safe_dump({"run": "first", "root": "s3://bucket/prefix"})})
    ) as asked:
        line = refusal({"run": {"run": "second"}}, *asked)
        assert 'run.run = "second", but release demo is run "first", which would lose its controller; install another release for' in line
        assert line.endswith("or end this one first: helm -n training uninstall demo")
        assert render({"run": {"run": "first"}}, *asked)
