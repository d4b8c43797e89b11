"""What is checked before anything starts: by a pod its credentials and the store, by a controller and by `doctor` the cluster."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

import pytest

from itool.cluster import client, preflight, session
from itool.cluster.api_answers import ClusterDown, Denied
from itool.cluster.client import QUEUE_PERMISSIONS
from itool.cluster.preflight import SECRET_KEYS, cluster_checks, require
from itool.config_kubernetes import StagePodConfig
from itool.errors import ConfigError, DependencyError
from tests.cli.cluster_scene import NAMESPACE, Scene

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A pod that has what its Secret holds."""
    for key in SECRET_KEYS:
        monkeypatch.setenv(key, "held")
    return Scene(tmp_path, monkeypatch)


def test_a_pod_that_has_all_it_needs_leaves_nothing_in_the_store(scene: Scene, capsys: Capture) -> None:
    assert scene.itoolctl("doctor", "--preflight") == 0
    assert "conditional writes work" in capsys.readouterr().out
    assert scene.store.list("") == {}


def test_a_store_that_replaces_what_must_only_be_created_is_a_setting(scene: Scene, capsys: Capture) -> None:
    scene.store.create = lambda key, data: scene.store.write(key, data) is None
    assert scene.itoolctl("doctor", "--preflight") == 64
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "replaces an object that must only be created. Use a store with conditional writes" in captured.err


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_the_first_thing_that_is_missing_gives_the_exit_code(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: Capture, key: str
) -> None:
    scene.store.down = True
    assert scene.itoolctl("doctor", "--preflight") == 69
    monkeypatch.setenv(key, "")  # a Secret may hold an empty value
    assert scene.itoolctl("doctor", "--preflight") == 64
    assert f"or has no {key}. Create it with `kubectl create secret generic s3" in capsys.readouterr().err


def test_an_api_server_that_goes_away_during_the_dry_run_is_no_setting(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def down(*_: Any, **_options: Any) -> NoReturn:
        raise ClusterDown("the API server is down")

    monkeypatch.setattr(scene.cluster, "create", down)
    assert scene.itoolctl("iterate", "--n", "1") == 69
    assert capsys.readouterr().err.endswith("itoolctl: the API server is down\n")


def test_doctor_finds_nothing_missing(scene: Scene, capsys: Capture) -> None:
    assert scene.itoolctl("doctor", "-o", "json") == 0
    checks = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)}
    assert set(checks.values()) == {"ok"}
    assert {"store", "cluster", "namespace", "permissions", "credentials", "dry run"} <= checks.keys()
    assert scene.cluster.objects["jobs"] == {}


TAKEN = {"metadata": {"name": "itool-run-demo", "namespace": "here"}, "data": {"root": "s3://other/runs"}}


BAD = {
    "old cluster": ({"released": (1, 27)}, {}, "Kubernetes 1.27 is too old: sidecar containers and retries per shard need 1.29"),
    "no namespace": ({}, {NAMESPACE: HTTPStatus.NOT_FOUND}, "kubernetes.namespace = 'here' does not exist"),
    "no rights": ({"denied": frozenset({("create", "batch/jobs")})}, {}, "not allowed in namespace here: create batch/jobs"),
    "no Secret": ({}, {f"{NAMESPACE}/secrets/s3": HTTPStatus.NOT_FOUND}, "kubernetes.credentials_secret = 's3' does not exist"),
    "no key": ({}, {f"{NAMESPACE}/secrets/s3": {"data": {}}}, "kubernetes.credentials_secret = 's3' has no key AWS_ACCESS_KEY_ID"),
    "taken name": (
        {},
        {f"{NAMESPACE}/configmaps/itool-run-demo": TAKEN},
        "run demo exists in namespace here with root s3://other/runs, not s3://bucket/runs. Choose another `run`, or end that one: "
        "kubectl -n here delete configmap itool-run-demo",
    ),
    "no account": ({}, {f"{NAMESPACE}/serviceaccounts/default": HTTPStatus.NOT_FOUND}, "kubernetes.job_service_account = 'default'"),
    "refused": (
        {"refuses": {"jobs": "no pod may lack a limit"}},
        {},
        "prepare: Kubernetes refuses to create jobs in namespace here: no pod",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_iterate_stops_before_it_creates_anything(scene: Scene, capsys: Capture, case: str) -> None:
    attributes, lookable, words = BAD[case]
    for name, value in attributes.items():
        setattr(scene.cluster, name, value)
    scene.cluster.lookable |= lookable
    assert scene.itoolctl("iterate") == 64
    captured = capsys.readouterr()
    assert captured.err.startswith(f"itoolctl: {words}")
    assert captured.err.count("\n") == 1
    assert ". " in captured.err  # a remedy follows
    assert not any(scene.cluster.objects.values())
    assert scene.store.list("") == {}


def test_a_quota_that_the_runs_own_stage_uses_up_stops_nobody_from_following_it(scene: Scene, capsys: Capture) -> None:
    full = "exceeded quota: one, requested: pods=1,requests.nvidia.com/gpu=1, used: pods=2,requests.nvidia.com/gpu=1, limited: pods=2,"
    scene.cluster.refuses["pods"] = f'pods "x" is forbidden: {full}requests.nvidia.com/gpu=1'
    assert scene.itoolctl("doctor") == 0
    assert "note     dry run     a pod of prepare would have to wait: exceeded quota: one, requested:" in capsys.readouterr().out
    jobs = "exceeded quota: one, requested: count/jobs.batch=1, used: count/jobs.batch=100, limited: count/jobs.batch=100"
    scene.cluster.refuses["jobs"] = f'jobs.batch "x" is forbidden: {jobs}'  # Jobs that are over count until they expire
    assert scene.itoolctl("doctor") == 0
    assert f"note     dry run     prepare would have to wait: {jobs}. Let others end" in capsys.readouterr().out
    scene.cluster.script["prepare"] = [65]
    assert scene.itoolctl("iterate") == 65  # it has come as far as that
    too_small = "exceeded quota: one, requested: requests.memory=9000Mi, used: requests.memory=1Gi, limited: requests.memory=8Gi"
    scene.cluster.refuses["pods"] = f'pods "x" is forbidden: {too_small}'
    capsys.readouterr()
    assert scene.itoolctl("doctor") == 64  # it fits nobody, whoever ends
    assert f"a pod of prepare: never fits: {too_small}. Correct the kubernetes section" in capsys.readouterr().out
    scene.cluster.refuses["pods"] = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    assert scene.itoolctl("doctor") == 64


def deny(scene: Scene, monkeypatch: pytest.MonkeyPatch, asks: int) -> None:
    """An API server that knows nobody's rights for so many questions, whatever it is asked."""
    left = iter(range(asks))
    version, may = scene.cluster.version, scene.cluster.may

    def asked_version() -> tuple[int, int]:
        if next(left, None) is None:
            return version()
        raise Denied('not allowed to get /version in namespace here: User "u" cannot get path "/version"')

    monkeypatch.setattr(scene.cluster, "version", asked_version)
    monkeypatch.setattr(scene.cluster, "may", lambda verb, resource: next(left, None) is None and may(verb, resource))


def test_rights_that_come_within_their_time_are_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock: dict[str, Any] = {"clock": lambda: now[0], "sleep": lambda seconds: now.append(now.pop() + seconds)}
    wait = partial(require, scene.cluster, scene.config, rights_within_seconds=60.0, **clock)
    deny(scene, monkeypatch, 5)
    wait()
    assert 0.0 < now[0] < 60.0
    scene.cluster.denied = frozenset({("create", "batch/jobs")})
    with pytest.raises(ConfigError, match=r"not allowed in namespace here: create batch/jobs\. Bind the chart's Role"):
        wait()
    assert now[0] > 60.0
    scene.cluster.released = (1, 27)
    ended = now[0]
    with pytest.raises(ConfigError, match="too old"):
        wait()
    assert now[0] == ended  # what is no right is not waited for


@pytest.mark.parametrize("in_a_pod", [False, True])
def test_a_pod_waits_for_its_rights_and_a_person_is_told_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture, in_a_pod: bool
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(client, "TOKEN_FOLDER", tmp_path)
    monkeypatch.setattr(preflight, "LOOK_AGAIN_SECONDS", 0.0)
    if in_a_pod:
        (tmp_path / "token").write_text("a token")
    scene.cluster.script["prepare"] = [65]
    deny(scene, monkeypatch, 5)
    assert scene.itoolctl("iterate") == (65 if in_a_pod else 64)
    assert ("waiting for rights" in capsys.readouterr().err) == in_a_pod


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pod_that_waits_for_its_rights_is_stopped_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: signal.Signals
) -> None:
    monkeypatch.setattr(client, "in_cluster", lambda: True)
    monkeypatch.setattr(preflight, "LOOK_AGAIN_SECONDS", 60.0)
    asked = threading.Event()
    monkeypatch.setattr(scene.cluster, "may", lambda *_: asked.set())

    def send() -> None:
        asked.wait(10)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    began, former = time.monotonic(), signal.signal(number, signal.SIG_IGN)  # as the first process of a pod has it
    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert scene.itoolctl("iterate") == 75
    finally:
        sender.join()
        signal.signal(number, former)
    assert time.monotonic() - began < 30.0
    line = "itoolctl: stopped while waiting for the cluster's checks; nothing was started. Start it again when you want it"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert scene.store.list("") == {}


def test_a_signal_just_before_the_checks_ends_them_too(scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    handled = session.controller_signals

    @contextmanager
    def signalled() -> Iterator[session.StopRequest]:
        with handled() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            yield stop

    monkeypatch.setattr(session, "controller_signals", signalled)
    assert scene.itoolctl("iterate") == 75
    assert "stopped while waiting for the cluster's checks; nothing was started" in capsys.readouterr().err
    assert scene.cluster.calls == 0


def test_a_queue_without_kueue_and_a_priority_class_without_an_object_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    assert scene.itoolctl("doctor", "--set", "kubernetes.queue=gpus", "--set", "kubernetes.pods.priority_class=high") == 64
    out = capsys.readouterr().out
    assert "kubernetes.queue = 'gpus' needs Kueue, which is not installed: no API kueue.x-k8s.io. Install Kueue" in out
    assert "kubernetes.pods.priority_class = 'high' does not exist" in out
    scene.cluster.lookable["/apis/kueue.x-k8s.io"] = {"preferredVersion": {"version": "v1beta2"}}
    assert scene.itoolctl("doctor", "--set", "kubernetes.queue=gpus") == 64
    assert "kubernetes.queue = 'gpus' does not exist in namespace here" in capsys.readouterr().out
    [(right, verbs)] = QUEUE_PERMISSIONS.items()
    group, _, resource = right.partition("/")
    assert (group, verbs) == ("kueue.x-k8s.io", ("get",))
    scene.cluster.lookable[f"/apis/{group}/v1beta2/namespaces/here/{resource}/gpus"] = {}
    assert scene.itoolctl("doctor", "--set", "kubernetes.queue=gpus") == 0


def test_a_check_that_cannot_be_made_keeps_its_name(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise DependencyError("the API server is down")

    look = scene.cluster.look
    settings = scene.config.kubernetes.model_copy(update={"queue": "gpus", "pods": StagePodConfig(priority_class="high")})
    config = scene.config.model_copy(update={"kubernetes": settings})
    names = [check.name for check in cluster_checks(scene.cluster, config)]
    monkeypatch.setattr(scene.cluster, "look", lambda path: look(path) if path == NAMESPACE else refuse())
    monkeypatch.setattr(scene.cluster, "create", refuse)
    checks = list(cluster_checks(scene.cluster, config))
    assert [check.name for check in checks] == names
    assert [check.state for check in checks] == ["ok"] * 3 + ["missing"] * 6
    for position, question in enumerate(("version", "look", "may")):
        with monkeypatch.context() as patch:
            patch.setattr(scene.cluster, "look", look)
            patch.setattr(scene.cluster, question, refuse)
            assert [check.name for check in cluster_checks(scene.cluster, config)] == names[: position + 1]


def test_a_store_or_a_cluster_that_does_not_answer_is_69(scene: Scene, capsys: Capture) -> None:
    scene.store.down = True
    assert scene.itoolctl("doctor") == 69
    assert capsys.readouterr().err == "itoolctl: S3 at http://s3 does not answer after 4 attempts\n"


def test_an_account_that_may_not_look_is_told_what_was_not_checked(scene: Scene, capsys: Capture) -> None:
    for path in (NAMESPACE, f"{NAMESPACE}/secrets/s3", f"{NAMESPACE}/serviceaccounts/default"):
        scene.cluster.lookable[path] = HTTPStatus.FORBIDDEN
    scene.cluster.denied = frozenset({("create", "pods")})
    assert scene.itoolctl("doctor") == 0
    out = capsys.readouterr().out
    assert "note     credentials kubernetes.credentials_secret = 's3' cannot be looked at by this account" in out
    assert "note     namespace   here cannot be looked at by this account" in out
    assert "note     accounts    default cannot be looked at by this account" in out
    assert "pods not tried, this account creates none" in out


def test_preflight_asks_the_store_alone_and_names_a_secret_that_is_not_there(
    scene: Scene, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.cluster.down = True
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key, raising=False)
    assert scene.itoolctl("doctor", "--preflight") == 64
    said = capsys.readouterr()
    assert said.err.startswith("itoolctl: run.kubernetes.credentials_secret = 's3' does not exist in this namespace")
    assert (said.err.count("\n"), said.out) == (1, "")  # Helm prints the log of the pod, whose two streams come in any order
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "x")
    assert scene.itoolctl("doctor", "--preflight") == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["ok", "credentials"], ["ok", "store"]]
