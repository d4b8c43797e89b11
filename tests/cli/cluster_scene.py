"""`itoolctl` in this process against a cluster in memory and objects that lie in a folder but behave as in S3."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from itool.artifacts import s3
from itool.artifacts.store import FolderStore
from itool.cli import main as entry
from itool.cluster import client, pod_logs, watching
from itool.cluster.api_answers import Refused
from itool.cluster.controller import Controller, rules_of
from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.leases import StoreLease
from itool.config import RunConfig, load_config
from itool.errors import DependencyError
from tests.cluster.in_memory_cluster import InMemoryCluster, Object

NAMESPACE = "/api/v1/namespaces/here"


class Objects:
    """A store that is no folder: leases and logs are objects. `down` makes it answer nothing."""

    def __init__(self, folder: Path) -> None:
        self.root = "s3://bucket/runs"
        self.down = False
        self._folder = FolderStore(folder)

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise DependencyError("S3 at http://s3 does not answer after 4 attempts")
        return getattr(self._folder, name)

    def local_path(self, key: str) -> None:
        """Never on this machine."""


@dataclass
class CheckedCluster(InMemoryCluster):
    """The cluster in memory as preflight checks ask it, where time passes by itself: every watch is a step."""

    released: tuple[int, int] = (1, 34)
    denied: frozenset[tuple[str, str]] = frozenset()
    lookable: dict[str, Object | HTTPStatus] = field(default_factory=dict)
    refuses: dict[str, str] = field(default_factory=dict)

    def watch(self, resource: str, version: str, labels: str = "", fields: str = "") -> Any:
        self.tick()
        return super().watch(resource, version, labels, fields)

    def version(self) -> tuple[int, int]:
        return self.released

    def may(self, verb: str, resource: str) -> bool:
        return (verb, resource) not in self.denied

    def look(self, path: str) -> tuple[HTTPStatus, Object]:
        found = self.lookable.get(path, HTTPStatus.NOT_FOUND)
        return (found, {}) if isinstance(found, HTTPStatus) else (HTTPStatus.OK, found)

    def create(self, resource: str, body: Object, *, dry_run: bool = False) -> Object | None:
        if not dry_run:
            return super().create(resource, body)
        if resource in self.refuses:
            raise Refused(403, "Forbidden", self.refuses[resource]).explained(f"create {resource}", host="h", namespace=self.namespace)
        return body


class Scene:
    """One run, its store and its cluster, and the command line that meets them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        document = {"run": "demo", "root": "s3://bucket/runs", "iterations": 1, "search": {"shards": 3}}
        document |= {"runtime": {"backend": "kubernetes"}, "kubernetes": {"namespace": "here", "credentials_secret": "s3"}} | changes
        self.file = folder / "config.yaml"
        self.file.write_text(yaml.safe_dump(document))
        self.config: RunConfig = load_config(self.file)
        self.store: Any = Objects(folder / "store")
        self.cluster = CheckedCluster(self.store, self.config)
        self.cluster.lookable = {
            NAMESPACE: {"metadata": {"name": "here"}},
            f"{NAMESPACE}/secrets/s3": {"data": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}},
            f"{NAMESPACE}/serviceaccounts/default": {},
        }
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(s3, "S3Store", lambda _root, _config, **_: self.store)
        monkeypatch.setattr(client, "open_cluster", lambda _namespace, **_: self.cluster)
        for module in (pod_logs, watching):
            monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
        monkeypatch.delenv("ITOOL_ROOT", raising=False)

    def itoolctl(self, *arguments: str) -> int:
        """Run a command with this run's configuration; what it says is on capsys."""
        self._monkeypatch.setattr(sys, "argv", ["itoolctl", *arguments, "--config", str(self.file)])
        return self.main()

    def itoolctl_without_file(self, *arguments: str) -> int:
        """Run a command exactly as it stands."""
        self._monkeypatch.setattr(sys, "argv", ["itoolctl", *arguments])
        return self.main()

    def main(self) -> int:
        try:
            entry.main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    def leave_vllm(self) -> None:
        """What earlier settings of the run have left: a Deployment of one pod."""
        labels = {"itool/run": "demo", "app.kubernetes.io/component": "serving"}
        pod = {"name": "demo-vllm-a", "uid": "uid-a", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.cluster._put("deployments", {"metadata": {"name": "demo-vllm", "labels": labels}, "spec": {"replicas": 1}}, "ADDED")
        self.cluster._put("pods", {"metadata": pod, "spec": {}, "status": {"phase": "Running"}}, "ADDED")

    def hanging_pod(self, stage: str) -> str:
        """The pod of a stage that runs until `end`; its controller is gone."""
        self.cluster.script[stage] = ["hangs"]
        self.work(12)
        [pod] = [name for name in self.cluster.objects["pods"] if stage in name]
        return pod

    def end(self, pod: str) -> None:
        """Let a pod that hangs succeed, and its Job with it."""
        self.cluster._outcomes[pod] = 0
        for _ in range(2):
            self.cluster.tick()

    def work(self, rounds: int) -> None:
        """Let a controller that holds the run work for some rounds; then it dies without a word."""
        runner = KubernetesRunner(self.config, self.cluster, self.store, clock=lambda: self.cluster.now)
        runner.cache.start(follow=False)
        runner.remember_the_past()
        lease = StoreLease(self.store, self.config.run, ttl_seconds=3600)
        lease.acquire()
        controller = Controller(self.config, self.store, runner, lease, rules=rules_of(self.config), clock=lambda: self.cluster.now)
        try:
            for _ in range(rounds):
                if controller.step():
                    break
                runner.cache.look()
        finally:
            runner.close()
            lease.release()
