"""A run is stopped: nobody starts it again meanwhile, and what does not stop is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from itool.cluster.kubernetes_runner import KubernetesRunner
from itool.cluster.leases import StoreLease
from itool.errors import DependencyError
from itool.operations import cancelling
from itool.operations.cancelling import cancel_in_cluster
from tests.cli.cluster_scene import Scene


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A run whose warm-up runs; its controller is gone."""
    made = Scene(tmp_path, monkeypatch)
    made.hanging_pod("warmup")
    return made


def cancel(scene: Scene) -> bool:
    return cancel_in_cluster(scene.config, scene.store, scene.cluster)


def holder(scene: Scene) -> object:
    return StoreLease(scene.store, "demo").holder()


def test_nobody_can_start_the_run_while_its_jobs_are_being_stopped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    held, stop = [], KubernetesRunner.cancel

    def look(runner: KubernetesRunner, grace_seconds: float) -> None:
        held.append(holder(scene) is not None)
        stop(runner, grace_seconds)

    monkeypatch.setattr(KubernetesRunner, "cancel", look)
    assert cancel(scene)
    assert (held, holder(scene)) == ([True], None)


def test_a_controller_that_does_not_stop_is_said_and_its_jobs_are_left_to_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "LEASE_SECONDS", 0.0)
    looks = iter(range(10))
    monkeypatch.setattr("time.sleep", lambda _: next(looks))
    StoreLease(scene.store, "demo", identity={"pid": 7, "host": "there"}).acquire()
    with pytest.raises(DependencyError, match="run demo was asked to stop but its controller still runs"):
        cancel(scene)
    assert "itool/verdict" not in str(scene.cluster.objects["jobs"])


def test_jobs_that_outlive_their_grace_period_are_said_and_the_run_is_free_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KubernetesRunner, "cancel", lambda *_: None)
    with pytest.raises(DependencyError, match="i0-warmup still run after their grace period"):
        cancel(scene)
    assert holder(scene) is None


@pytest.mark.parametrize("over", [False, True])
def test_a_controller_that_is_over_is_not_suspended(scene: Scene, over: bool) -> None:
    cancel(scene)
    labels = {"itool/run": "demo", "app.kubernetes.io/component": "controller"}
    status = {"conditions": [{"type": "Complete", "status": "True"}]} if over else {}
    scene.cluster.objects["jobs"]["chart"] = {"metadata": {"name": "chart", "labels": labels}, "spec": {}, "status": status}
    assert cancel(scene) is not over
    assert scene.cluster.objects["jobs"]["chart"]["spec"].get("suspend", False) is not over
