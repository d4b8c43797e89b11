"""What only a real API server can say: that it accepts every object, and that the Secret which the values name is there."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from helm.render import PROFILES, REPOSITORY
from itool.cluster.pods import owner_object
from itool.config import parse_config
from tests.helm.rendering import CHART, POD_MONITOR, SMALLEST, deep_merge, helm_template
from tests.missing import missing

pytestmark = pytest.mark.cluster

KINDS = "configmaps,services,jobs,pods,serviceaccounts,roles,rolebindings,networkpolicies"
POD_MONITORS = "podmonitors.monitoring.coreos.com"


def kubectl(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False, timeout=60)


def install(namespace: str, changes: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`helm install` of the smallest values with these changes."""
    values = json.dumps(deep_merge(SMALLEST, changes))
    command = ["helm", "install", "demo", str(CHART), "--namespace", namespace, *arguments, "-f", "-"]
    return subprocess.run(command, input=values, capture_output=True, text=True, check=False, timeout=60)


def dry_run(namespace: str = "default", **changes: Any) -> subprocess.CompletedProcess[str]:
    """`helm install`, as far as a cluster can be asked without creating anything."""
    if not os.environ.get("KUBECONFIG"):
        raise missing("KUBECONFIG is not set")
    return install(namespace, changes, "--dry-run=server")


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """An empty namespace that enforces Pod Security "restricted"."""
    if not os.environ.get("KUBECONFIG"):
        raise missing("KUBECONFIG is not set")
    name = f"itool-chart-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    created = kubectl("create", "-f", "-", given=json.dumps(body))
    assert created.returncode == 0, created.stderr
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_plain_manifests_are_accepted_without_a_warning(namespace: str, profile: str) -> None:
    done = kubectl("apply", "--namespace", namespace, "--dry-run=server", "--recursive", "-f", str(REPOSITORY / "k8s" / profile))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(list((REPOSITORY / "k8s" / profile).rglob("*.yaml")))


def test_a_run_name_that_is_taken_by_a_run_elsewhere_is_one_line_with_a_remedy(namespace: str) -> None:
    taken = owner_object(parse_config({"run": "taken", "root": "s3://elsewhere/runs"}))
    assert kubectl("create", "--namespace", namespace, "-f", "-", given=json.dumps(taken)).returncode == 0
    line = dry_run(namespace, run={"run": "taken"}).stderr
    assert f'run.run = "taken" exists in namespace {namespace} with run.root = "s3://elsewhere/runs", not "s3://' in line
    assert f"end that one: kubectl -n {namespace} delete configmap itool-run-taken" in line
    assert "exists in namespace" not in dry_run(namespace, run={"run": "taken", "root": "s3://elsewhere/runs/"}).stderr


def test_a_missing_secret_is_one_line_with_the_command_that_creates_it(namespace: str) -> None:
    line = dry_run(namespace, run={"kubernetes": {"credentials_secret": "nowhere"}}).stderr
    assert f'run.kubernetes.credentials_secret = "nowhere", but namespace {namespace} has no such Secret; create it: kubectl' in line


def test_a_secret_without_the_keys_is_refused_and_a_complete_one_accepted(namespace: str) -> None:
    kubectl("create", "secret", "generic", "s3", "--namespace", namespace, "--from-literal=AWS_ACCESS_KEY_ID=a")
    assert "lacks the key AWS_SECRET_ACCESS_KEY" in dry_run(namespace, run={"kubernetes": {"credentials_secret": "s3"}}).stderr
    kubectl("patch", "secret", "s3", "--namespace", namespace, "-p", '{"stringData": {"AWS_SECRET_ACCESS_KEY": "b"}}')
    done = dry_run(namespace, run={"kubernetes": {"credentials_secret": "s3"}})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"serviceAccounts": {"jobs": {"create": False, "name": "nobody"}}},
            'serviceAccounts.jobs.name = "nobody", but namespace {} has no such ServiceAccount; create it: kubectl -n {} create',
        ),
        (
            {"run": {"kubernetes": {"image_pull_secrets": ["registry"]}}},
            'run.kubernetes.image_pull_secrets[0] = "registry", but namespace {} has no such Secret; create it: kubectl',
        ),
    ],
)
def test_an_object_that_the_values_name_must_be_there(namespace: str, changes: dict[str, Any], line: str) -> None:
    assert line.replace("{}", namespace) in dry_run(namespace, **changes).stderr


@pytest.mark.parametrize(
    ("controller", "reason"),
    [
        ({"priorityClass": "nowhere"}, "no PriorityClass with name nowhere was found"),
        ({"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}, 'violates PodSecurity "restricted:latest": restricted volume types'),
    ],
)
def test_a_controller_that_would_be_refused_is_refused_at_once_and_nothing_is_left(
    namespace: str, controller: dict[str, Any], reason: str
) -> None:
    before = kubectl("get", KINDS, "--namespace", namespace, "-o", "name").stdout
    refused = install(namespace, {"controller": controller}, "--timeout", "20s")
    kubectl("delete", "secret", "--namespace", namespace, "--selector", "owner=helm,name=demo")  # Helm's record of what has failed
    assert refused.returncode != 0
    assert f'pods "demo-controller-pod" is forbidden: {reason}' in refused.stderr
    assert kubectl("get", KINDS, "--namespace", namespace, "-o", "name").stdout == before


def test_a_missing_namespace_is_named_rather_than_what_is_missing_in_it(namespace: str) -> None:
    stderr = dry_run(f"{namespace}-absent", run={"kubernetes": {"credentials_secret": "s3"}}).stderr
    assert f"namespace {namespace}-absent does not exist; create it: kubectl create namespace {namespace}-absent" in stderr


@pytest.fixture
def pod_monitors() -> Iterator[None]:
    """A cluster that knows PodMonitor: a definition with the fields of the operator's that the chart fills, and no others."""
    text = {"type": "string"}
    rule = {"type": "object", "properties": {"key": text, "operator": text, "values": {"type": "array", "items": text}}}
    labels = {
        "type": "object",
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": text},
            "matchExpressions": {"type": "array", "items": rule},
        },
    }
    endpoint = {"type": "object", "properties": {"port": text, "path": text, "interval": text}}
    spec = {"type": "object", "properties": {"selector": labels, "podMetricsEndpoints": {"type": "array", "items": endpoint}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": {**spec, "required": ["podMetricsEndpoints", "selector"]}}}}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": POD_MONITORS},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"plural": "podmonitors", "singular": "podmonitor", "kind": "PodMonitor"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    created = kubectl("create", "-f", "-", given=json.dumps(body))
    if "AlreadyExists" in created.stderr:  # the operator's own is there
        yield
        return
    assert created.returncode == 0, created.stderr
    kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{POD_MONITORS}")
    yield
    kubectl("delete", "crd", POD_MONITORS)


def test_a_pod_monitor_is_created_where_its_definition_is(namespace: str, pod_monitors: None) -> None:
    values = {"podMonitor": {"enabled": True}, "run": {"policy": {"backend": "vllm"}}}
    assert dry_run(namespace, **values).returncode == 0
    rendered = helm_template(
        deep_merge(SMALLEST, values), "--api-versions", POD_MONITOR, "--show-only", "templates/serving/pod-monitor.yaml"
    )
    assert rendered.returncode == 0, rendered.stderr
    created = kubectl(
        "create", "--namespace", namespace, "--validate=strict", "-f", "-", given=rendered.stdout.replace("training", namespace)
    )
    assert (created.returncode, created.stderr) == (0, ""), created.stderr
    stored = json.loads(kubectl("get", "podmonitors", "--namespace", namespace, "-o", "json").stdout)["items"][0]
    assert stored["spec"]["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]


def test_a_pod_monitor_without_its_definition_is_refused(namespace: str) -> None:
    if kubectl("get", "crd", POD_MONITORS).returncode == 0:
        pytest.skip("this cluster has PodMonitor")
    assert "podMonitor.enabled = true, but the cluster has no PodMonitor" in dry_run(namespace, podMonitor={"enabled": True}).stderr
