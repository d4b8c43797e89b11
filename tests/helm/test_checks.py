"""What the schema cannot say: a line that names the key, the value and the remedy, before anything is created."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.rendering import POD_MONITOR, refusal, render


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"run": {"root": "runs"}}, 'run.root = "runs" is a folder, which pods do not share; set run.root to s3://bucket/prefix'),
        ({"run": {"root": ""}}, "run.root is empty; set run.root to s3://bucket/prefix"),
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
