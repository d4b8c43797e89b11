"""`itoolctl wait`: which end of a run is which exit code, and what is no end."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from itool.cli import wait
from itool.cluster.controller import StageFailed
from itool.cluster.leases import StoreLease
from tests.cli.cluster_scene import Scene
from tests.cluster.in_memory_cluster import Object

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(tmp_path, monkeypatch)
    pass_time(monkeypatch, lambda: None)
    return made


def pass_time(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let `meanwhile` happen between two looks, and the time of the pause pass."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        meanwhile()

    monkeypatch.setattr(wait, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now))


def fail(scene: Scene) -> None:
    scene.cluster.script["warmup"] = [65]
    with contextlib.suppress(StageFailed):
        scene.work(40)


def controller_job(scene: Scene) -> Object:
    """The Job of a chart's controller, between two pods."""
    labels = {"itool/run": "demo", "app.kubernetes.io/component": "controller"}
    job: Object = {"metadata": {"name": "chart", "labels": labels}, "spec": {}, "status": {}}
    scene.cluster.objects["jobs"]["chart"] = job
    return job


def test_a_run_that_becomes_done_ends_with_0(scene: Scene, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = scene.hanging_pod("warmup")

    def go_on() -> None:
        scene.end(pod)
        scene.work(100)

    pass_time(monkeypatch, go_on)
    assert scene.itoolctl("wait", "-o", "json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["state"] == "done"
    assert captured.err == "run demo: 1 of 8 stages done\nRun demo is done.\n"


def test_a_failed_run_ends_with_1_and_its_reason(scene: Scene, capsys: Capture) -> None:
    fail(scene)
    assert scene.itoolctl("wait") == 1
    goes_on = "`itoolctl iterate --run demo --root s3://bucket/runs` goes on"
    assert f"itoolctl: run demo failed at i0/warmup: told to end with 65. {goes_on}\n" in capsys.readouterr().err


def test_a_run_that_nobody_works_on_ends_with_1(scene: Scene, capsys: Capture) -> None:
    scene.cluster.script["warmup"] = ["unschedulable"]
    scene.work(12)
    assert scene.itoolctl("wait") == 1
    assert "run demo has stopped at i0/warmup: unschedulable" in capsys.readouterr().err


def test_a_damaged_artifact_ends_with_65(scene: Scene, capsys: Capture) -> None:
    scene.work(100)
    lost = next(key for key in scene.store.list("demo/i0/prepare") if not key.endswith("manifest.json"))
    scene.store.delete(lost)
    assert scene.itoolctl("wait") == 65
    assert f"{lost} is missing" in capsys.readouterr().err


def test_what_a_controller_goes_on_with_is_no_end(scene: Scene, capsys: Capture) -> None:
    fail(scene)
    job = controller_job(scene)
    assert scene.itoolctl("wait", "--timeout", "60") == 69
    assert "run demo has not ended within 60 s" in capsys.readouterr().err
    job["spec"]["suspend"] = True
    assert scene.itoolctl("wait") == 1
    StoreLease(scene.store, "demo").acquire()
    assert scene.itoolctl("wait", "--timeout", "60") == 69


def test_a_controller_that_cannot_start_ends_with_69_and_its_reason(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, kubernetes={"namespace": "here", "pending_seconds": 20.0})
    job, pods = controller_job(scene), scene.cluster.objects["pods"]
    labels = {**job["metadata"]["labels"], "batch.kubernetes.io/job-name": "chart"}
    blocked = {"name": "controller", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    status = {"phase": "Pending", "containerStatuses": [blocked]}
    pods["chart-x"] = {"metadata": {"name": "chart-x", "labels": labels}, "status": status}
    looks = itertools.count()

    def start_for_a_moment() -> None:
        status["phase"] = "Running" if next(looks) == 8 else "Pending"

    pass_time(monkeypatch, start_for_a_moment)
    assert scene.itoolctl("wait", "--timeout", "30") == 69
    assert "has not ended within 30 s" in capsys.readouterr().err
    assert scene.itoolctl("wait", "--timeout", "30") == 69
    could_not = "the controller of run demo could not start within 20 s (kubernetes.pending_seconds)"
    assert f"{could_not}: ImagePullBackOff: no such image. Correct what keeps it" in capsys.readouterr().err

    del pods["chart-x"]
    refusal = {"involvedObject": {"name": "chart"}, "type": "Warning", "reason": "FailedCreate", "message": "exceeded quota: pods"}
    scene.cluster.objects["events"]["e"] = {"metadata": {}, **refusal}
    assert scene.itoolctl("wait") == 69
    assert f"{could_not}: no pod can be created: exceeded quota: pods." in capsys.readouterr().err


def test_a_controller_that_finishes_while_it_is_looked_at_has_not_stopped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    scene.work(20)
    pass_time(monkeypatch, lambda: scene.work(100))  # the first look finds it half done and nobody there
    assert scene.itoolctl("wait") == 0


def test_an_outage_is_waited_for_and_then_ends_with_69(scene: Scene, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.work(100)
    scene.store.down = True
    assert scene.itoolctl("wait") == 69
    assert "S3 at http://s3 does not answer" in capsys.readouterr().err
    pass_time(monkeypatch, lambda: setattr(scene.store, "down", False))
    assert scene.itoolctl("wait") == 0


def test_a_controller_that_an_outage_kept_from_renewing_its_lease_has_not_stopped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.cluster.script["warmup"] = ["unschedulable"]
    scene.work(12)
    lease = StoreLease(scene.store, "demo")
    lease.acquire()

    looks = itertools.count(1)

    def go_on() -> None:
        look = next(looks)
        scene.store.down = look == 1
        if look == 2:
            lease.release()  # as if it had expired
        if look == 12:
            lease.acquire()

    pass_time(monkeypatch, go_on)
    assert scene.itoolctl("wait", "--timeout", "300") == 69


def test_a_run_that_an_outage_has_ended_is_not_waited_for_without_an_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(scene)
    scene.store.down = True
    pass_time(monkeypatch, lambda: setattr(scene.store, "down", False))
    assert scene.itoolctl("wait") == 1
