"""When a local file counts as another input: its content decides, on this machine only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from itool.artifacts import local_files
from itool.artifacts.local_files import file_fingerprints
from itool.config import RunConfig, parse_config

FILES = {
    "data.path": "data/train.jsonl",
    "data.held_out_path": "held_out.json",
    "data.tool_pool_path": "data/tool.jsonl",
    "model.path": "base/model.safetensors",
    "model.chat_template": "mine.jinja",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Everything local, named relative to the working directory; the pool lies beside the data."""
    monkeypatch.chdir(tmp_path)
    for name in FILES.values():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    data = {"source": "seal_tools", "path": FILES["data.path"], "held_out_path": "held_out.json"}
    return parse_config({"data": data, "model": {"path": "base", "chat_template": "mine.jinja"}})


@pytest.fixture
def large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file is large; returns the cache folder, which is not there yet."""
    monkeypatch.setattr(local_files, "LARGE_BYTES", 1)
    monkeypatch.setenv("ITOOL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def changed(config: RunConfig, before: dict[str, str | None]) -> list[str]:
    after = file_fingerprints(config)
    return [name.removesuffix(" (content)") for name in after if after[name] != before[name]]


@pytest.mark.parametrize("setting", FILES)
def test_new_content_changes_the_fingerprint_of_its_setting_alone(config: RunConfig, setting: str) -> None:
    before = file_fingerprints(config)
    assert all(before.values())
    Path(FILES[setting]).write_text("corrected")
    assert changed(config, before) == [setting]


def test_a_touched_file_is_the_same_and_so_is_a_folder_with_a_file_that_nobody_reads(config: RunConfig) -> None:
    before = file_fingerprints(config)
    os.utime(FILES["data.path"], (0, 0))
    Path("base/README.md").write_text("read me")
    assert changed(config, before) == []
    Path("base/tokenizer.json").write_text("{}")
    assert changed(config, before) == ["model.path"]


def test_a_path_below_the_home_folder_is_that_file(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = {"path": "~/data/train.jsonl", "held_out_path": "~/held_out.json", "tool_pool_path": "~/data/tool.jsonl"}
    model = {"path": "~/base", "chat_template": "~/mine.jinja"}
    home = parse_config({"data": {"source": "seal_tools"} | data, "model": model})
    beside = parse_config({"data": {"source": "seal_tools"} | data | {"tool_pool_path": None}, "model": model})
    assert file_fingerprints(home) == file_fingerprints(beside) == file_fingerprints(config)


def test_a_named_chat_template_counts_as_the_model(config: RunConfig) -> None:
    template = Path("base/additional_chat_templates/tool_use.jinja")
    template.parent.mkdir()
    template.write_text("{{ tools }}")
    before = file_fingerprints(config)
    template.write_text("{{ tools }}!")
    assert changed(config, before) == ["model.path"]


def test_a_file_is_read_once(config: RunConfig) -> None:
    file_fingerprints(config)
    read = local_files._digest.cache_info().misses
    file_fingerprints(config)
    assert local_files._digest.cache_info().misses == read


def test_a_large_file_counts_whole(config: RunConfig, large_files: Path) -> None:
    model = Path(FILES["model.path"])
    seen = set()
    for time, content in enumerate(("aaaa----zzzz", "aaaa-++-zzzz", "aaaa----zzzy", "aaab----zzzz", "aaaa-----zzzz")):
        model.write_text(content)
        os.utime(model, ns=(time, time))
        seen.add(file_fingerprints(config)["model.path (content)"])
    assert len(seen) == 5


def test_a_large_file_is_read_once_by_a_user(config: RunConfig, large_files: Path) -> None:
    before = file_fingerprints(config)
    local_files._digest.cache_clear()  # another process
    assert file_fingerprints(config) == before
    kept = [path for path in large_files.rglob("*") if path.is_file()]
    assert len(kept) == len(FILES)
    for path in kept:
        path.write_text("0" * 64)
    local_files._digest.cache_clear()
    assert len(changed(config, before)) == len(FILES)


@pytest.mark.parametrize("damaged", [b"", b"0" * 63, b"\xff" * 64], ids=["empty", "short", "no text"])
def test_a_large_file_is_read_again_where_what_was_kept_is_no_digest(config: RunConfig, large_files: Path, damaged: bytes) -> None:
    before = file_fingerprints(config)
    kept = {path: path.read_bytes() for path in large_files.rglob("*") if path.is_file()}
    for path in kept:
        path.write_bytes(damaged)
    local_files._digest.cache_clear()
    assert changed(config, before) == []
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_large_file_is_read_by_every_process_where_nothing_can_be_kept(config: RunConfig, large_files: Path) -> None:
    large_files.write_text("in the way")
    before = file_fingerprints(config)
    assert all(before.values())
    local_files._digest.cache_clear()
    assert changed(config, before) == []


def test_what_is_built_in_on_the_hub_not_there_or_in_a_cluster_has_no_fingerprint(config: RunConfig) -> None:
    assert file_fingerprints(RunConfig()) == {}
    hub = parse_config({"data": {"source": "toolace", "path": "Team-ACE/ToolACE"}, "model": {"path": "owner/name"}})
    assert set(file_fingerprints(hub).values()) == {None}
    Path("mine.jinja").unlink()
    assert file_fingerprints(config)["model.chat_template (content)"] is None
    cluster = {"backend": "kubernetes"}
    pods = parse_config(config.model_dump(mode="json") | {"root": "s3://bucket/prefix", "runtime": cluster})
    assert file_fingerprints(pods) == {}
