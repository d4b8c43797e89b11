"""From options and what lies in the store to a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from itool.artifacts.store import FolderStore
from itool.cli import options
from itool.config import ENDPOINT_VARIABLES, RunConfig
from itool.errors import ConfigError
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
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    FolderStore(tmp_path).write("demo/config.yaml", b"run: demo\nstore: {endpoint_url: 'http://s3.pods', region: here}\n")
    assert options.existing_config("demo", str(tmp_path)).store.endpoint_url == "http://s3.pods"
    monkeypatch.setenv(variable, "http://localhost:9000")
    store = options.existing_config("demo", str(tmp_path)).store
    assert (store.endpoint_url, store.region) == (None, "here")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sets": ["seed=3", "search.width=0"]}, "--set search.width=0: search.width = 0: input should be"),
        ({"sets": ["search={width: 0}"]}, "--set search={width: 0}: search.width = 0: "),
        ({"sets": ["search.width=0", "search.width=-1"]}, "--set search.width=-1: search.width = -1: "),
        ({"sets": ["evaluate.pass_k=[1, 0]"]}, "--set evaluate.pass_k=[1, 0]: evaluate.pass_k.1 = 0: "),
        ({"sets": ["serch.width=2"]}, "--set serch.width=2: unknown key serch; allowed here: "),
        ({"sets": ["seed.x=2"]}, "--set seed.x=2: seed.x cannot be set, as seed is a value, not a section"),
        ({"sets": ["run=Bad"]}, "--set run=Bad: run = 'Bad' is no DNS label"),
        ({"sets": ["seed=3"], "run": "Bad"}, "command line: run = 'Bad' is no DNS label"),
        ({"sets": ["data.source=xlam"]}, "config.yaml with --set data.source=xlam: data.path is missing"),
        (
            {"sets": ["seed=3", "data.buffer_fraction=0.99"]},
            "config.yaml with --set seed=3 --set data.buffer_fraction=0.99: data: buffer and",
        ),
        ({"sets": [], "backend": "kubernetes"}, "config.yaml: root = 'runs' is a folder, which pods do not share"),
    ],
)
@pytest.mark.parametrize("file", [None, Path("runs/demo/config.yaml")])
def test_what_an_option_gives_is_not_laid_at_the_files_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str, file: Path | None
) -> None:
    monkeypatch.chdir(tmp_path)
    FolderStore(Path("runs")).write("demo/config.yaml", b"run: demo\nseed: 7\nsearch: {width: 3}\n")
    with pytest.raises(ConfigError) as caught:
        options.build_config(file, **given)
    assert message in str(caught.value)
    assert ("config.yaml" in str(caught.value)) == message.startswith("config.yaml")
