"""What is checked before anything starts: by a pod its credentials and the store, by a controller the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from itool.cluster.api_answers import ClusterDown
from itool.cluster.preflight import SECRET_KEYS
from tests.cli.cluster_scene import Scene

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
