"""From options and what lies in the store to a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from itool.artifacts.store import FolderStore
from itool.cli import options
from itool.config import RunConfig
from tests.fakes.counted_store import CountedStore


def test_a_stored_configuration_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CountedStore(tmp_path)
    store.write("demo/config.yaml", b"run: demo\nseed: 7\n")
    monkeypatch.setattr(options, "open_root", lambda _root, **_: store)
    assert options.existing_config("demo", str(tmp_path)).seed == 7
    assert store.asked.count("read demo/config.yaml") == 1


def test_without_a_file_the_stored_configuration_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FolderStore(Path("runs"))
    store.write("demo/config.yaml", b"run: demo\nseed: 7\n")
    store.write("other/config.yaml", b"run: other\nseed: 8\n")
    bare, named = options.build_config(None, None, n=5), options.build_config(None, None, run="other")
    assert (bare.run, bare.seed, bare.iterations) == ("demo", 7, 5)
    assert (named.run, named.seed) == ("other", 8)
    assert options.build_config(None, ["run=other"]).seed == 8
    assert options.build_config(None, None, root="empty").seed == RunConfig().seed
    assert options.given_config(None, None).seed == RunConfig().seed


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environments_endpoint_comes_before_the_stored_one_which_only_pods_may_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in options.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    FolderStore(tmp_path).write("demo/config.yaml", b"run: demo\nstore: {endpoint_url: 'http://s3.pods', region: here}\n")
    assert options.existing_config("demo", str(tmp_path)).store.endpoint_url == "http://s3.pods"
    monkeypatch.setenv(variable, "http://localhost:9000")
    store = options.existing_config("demo", str(tmp_path)).store
    assert (store.endpoint_url, store.region) == (None, "here")
