"""A run's owner object: everything belongs to it, and it to the release that a chart started."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from itool.artifacts.resolve import resolve
from itool.cluster.api_answers import ClusterDown
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.pods import is_leftover, owner_object
from itool.errors import ConfigError, DependencyError
from tests.cluster.in_memory_cluster import InMemoryCluster
from tests.cluster.runner_scenes import made_cluster, made_config, open_controller, release_of, run
from tests.fakes.memory_store import MemoryStore


def test_everything_belongs_to_the_runs_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITOOL_RELEASE_CONFIGMAP", "release-config")
    cluster = made_cluster()
    release = cluster.create("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "release-config"}})
    run(cluster)
    owner = cluster.objects["configmaps"]["itool-run-demo"]
    assert release is not None
    assert owner["metadata"]["ownerReferences"][0]["uid"] == release["metadata"]["uid"]
    owned = [
        *cluster.objects["jobs"].values(),
        *(item for name, item in cluster.objects["configmaps"].items() if name.startswith("itool-demo-")),
    ]
    assert {item["metadata"]["ownerReferences"][0]["uid"] for item in owned} == {owner["metadata"]["uid"]}


def owners_of_the_run(cluster: InMemoryCluster) -> list[str]:
    return [reference["uid"] for reference in cluster.objects["configmaps"]["itool-run-demo"]["metadata"].get("ownerReferences", [])]


def test_a_release_that_continues_a_laptops_run_owns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = made_cluster()
    controller = open_controller(cluster)
    controller.step()
    controller.lease.release()
    assert owners_of_the_run(cluster) == []
    first = release_of(cluster, "first", monkeypatch)
    run(cluster)
    assert owners_of_the_run(cluster) == [first]
    assert {job["metadata"]["ownerReferences"][0]["name"] for job in cluster.objects["jobs"].values()} == {"itool-run-demo"}
    release_of(cluster, "second", monkeypatch)
    runner = open_controller(cluster).runner
    assert isinstance(runner, KubernetesRunner)
    runner.ensure_owner()
    assert owners_of_the_run(cluster) == [first]  # it lives


def test_a_release_that_may_not_own_a_laptops_run_continues_it_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enforcing(InMemoryCluster):
        """With Kubernetes' OwnerReferencesPermissionEnforcement."""

        def patch(self, resource: str, name: str, change: dict[str, Any]) -> dict[str, Any] | None:
            if "ownerReferences" in change.get("metadata", {}):
                raise ConfigError(f"{resource} {name} is forbidden: cannot set an ownerRef on a resource you can't delete")
            return super().patch(resource, name, change)

    cluster = Enforcing(MemoryStore(), made_config())
    controller = open_controller(cluster)
    controller.step()
    controller.lease.release()
    release_of(cluster, "release", monkeypatch)
    with capture_logs() as said:
        run(cluster)
    assert all(found.done for found in resolve(cluster.store, cluster.config).values())
    assert owners_of_the_run(cluster) == []
    [warning] = [line for line in said if line["log_level"] == "warning"]
    assert warning["remedy"] == "after uninstalling, kubectl -n here delete configmap itool-run-demo"


def test_an_owner_that_somebody_else_takes_at_the_same_moment_stays_his(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = made_cluster()
    runner = open_controller(cluster).runner
    assert isinstance(runner, KubernetesRunner)
    seen = runner.ensure_owner()
    cluster.patch("configmaps", "itool-run-demo", {"metadata": {"ownerReferences": [{"uid": "theirs"}]}})
    release_of(cluster, "ours", monkeypatch)
    get = cluster.get
    with monkeypatch.context() as late:
        late.setattr(cluster, "get", lambda resource, name: seen if name == "itool-run-demo" else get(resource, name))
        with pytest.raises(ClusterDown):
            runner.ensure_owner()
    assert runner.ensure_owner()["metadata"]["ownerReferences"] == [{"uid": "theirs"}]


def test_a_run_of_the_same_name_with_another_root_is_left_alone() -> None:
    cluster = made_cluster()
    other = owner_object(made_config(root="s3://bucket/elsewhere"))
    cluster.create("configmaps", other)
    with pytest.raises(ConfigError, match="run demo exists in this namespace with root s3://bucket/elsewhere, not s3://bucket/runs"):
        run(cluster)
    assert not cluster.objects["jobs"]


def test_a_configuration_that_goes_with_an_earlier_owner_is_waited_out_and_made_again() -> None:
    cluster = made_cluster()
    run(cluster)
    pods_config = next(name for name in cluster.objects["configmaps"] if name != "itool-run-demo")
    cluster._remove("configmaps", "itool-run-demo")  # uninstalled: what it owned is yet to be collected
    runner = open_controller(cluster).runner
    assert isinstance(runner, KubernetesRunner)
    owner = runner.ensure_owner()
    for _ in range(2):
        with pytest.raises(DependencyError, match=f"configmap {pods_config} of an earlier installation is still being removed"):
            runner._ensure_config(owner)
    cluster._remove("configmaps", pods_config)
    assert runner._ensure_config(owner) == pods_config
    assert cluster.objects["configmaps"][pods_config]["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]


def test_what_is_being_deleted_or_somebody_elses_is_left_to_kubernetes() -> None:
    owner = {"metadata": {"uid": "ours"}}
    ours, theirs = {"ownerReferences": [{"uid": "ours"}]}, {"ownerReferences": [{"uid": "an earlier owner's"}]}
    items = (ours, theirs, {**ours, "deletionTimestamp": "2026-01-01T00:00:00Z"}, {})
    assert [is_leftover({"metadata": metadata}, owner) for metadata in items] == [False, True, True, False]
