"""Shards of one stage run anywhere, in any order, more than once, and give one artifact."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts import commit as commit_module
from itool.artifacts import stage as stage_module
from itool.artifacts.catalogue import find_remains, remove_artifact, verify_artifact
from itool.artifacts.commit import add_metrics, commit, join_shards, read_manifest
from itool.artifacts.manifest import Manifest, manifest_key
from itool.artifacts.resolve import Resolution, resolve, shard_prefix
from itool.artifacts.stage import Stage, run_stage
from itool.artifacts.store import FolderStore
from itool.config import RunConfig, parse_config
from itool.errors import ArtifactError, ItoolError
from itool.names import StageName
from itool.stages import StageId

GENERATE = StageId(1, "generate")
SHARDS = 3


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run whose next stage is `generate` in three shards."""
    config = parse_config({"root": str(tmp_path / "store"), "iterations": 1, "search": {"shards": SHARDS}})
    (tmp_path / "config.yaml").write_text(config.as_yaml())
    names: list[tuple[StageName, str]] = [("prepare", "0"), ("warmup", "0"), ("score", "1")]
    for name, iteration in names:
        assert run_stage(name, lambda stage: stage.write_json("x.json", stage.id.name), arguments(config, iteration)) == 0
    return config


def arguments(config: RunConfig, iteration: str = "1") -> list[str]:
    return ["--config", str(Path(config.root).parent / "config.yaml"), "--iteration", iteration]


def generate(stage: Stage) -> None:
    stage.write("pairs.jsonl", [{"shard": stage.shard, "row": row} for row in range(stage.shard + 1)])
    stage.write("trees.jsonl", [])
    stage.count(incoming=10, kept=9, dropped={"timeout": 1})
    stage.metrics({"stopped": {"solved": 2}, "sampled_tokens": 5})
    stage.tokens(7)


def run_shard(config: RunConfig, shard: int, body: Any = generate) -> int:
    return run_stage("generate", body, [*arguments(config), "--shard", str(shard), "--shards", str(SHARDS)])


def resolution(config: RunConfig) -> Resolution:
    return resolve(FolderStore(Path(config.root)), config)[GENERATE]


def test_the_last_shard_joins_all_in_shard_order(config: RunConfig) -> None:
    for shard in (2, 0):
        assert run_shard(config, shard) == 0
        assert not resolution(config).done
    assert resolution(config).shards_done == (0, 2)
    assert run_shard(config, 1) == 0
    done = resolution(config)
    assert done.manifest is not None
    store = FolderStore(Path(config.root))
    pairs = store.read(done.manifest.file_key(str(done.prefix), "pairs.jsonl")).decode()
    assert pairs.splitlines() == [f'{{"shard": {s}, "row": {r}}}' for s in range(SHARDS) for r in range(s + 1)]
    assert (done.manifest.counts.incoming, done.manifest.counts.dropped, done.manifest.tokens) == (30, {"timeout": 3}, 21)
    assert done.manifest.metrics == {"stopped": {"solved": 6}, "sampled_tokens": 15}
    assert store.size(done.manifest.file_key(str(done.prefix), "trees.jsonl")) == 0
    assert [key for key in store.list(str(done.prefix)) if "/shards/" in key] == []


def drop(count: int) -> Any:
    """A shard that could not use so many of its ten records."""

    def body(stage: Stage) -> None:
        stage.write("pairs.jsonl", [])
        stage.count(incoming=10, kept=10 - count, dropped={"timeout": count})

    return body


def test_how_many_records_may_be_dropped_is_asked_of_all_shards_together(config: RunConfig) -> None:
    """A shard of a few examples drops half of them by chance."""
    assert [run_shard(config, shard, drop(count)) for shard, count in enumerate((5, 0, 1))] == [0, 0, 0]
    assert resolution(config).done


def test_shards_that_dropped_too_many_records_together_are_joined_when_more_may_be(
    config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [run_shard(config, shard, drop(3)) for shard in range(SHARDS)] == [0, 0, 65]
    assert "stage i1/generate dropped 9 of 30 records (timeout 9), more than data.max_dropped_fraction 0.2" in capfd.readouterr().err
    assert not resolution(config).done
    assert run_shard(config, 1, lambda stage: pytest.fail("ran twice")) == 65
    allowed = parse_config(config.model_dump(mode="json"), ["data.max_dropped_fraction=0.3"])
    (tmp_path / "config.yaml").write_text(allowed.as_yaml())
    assert run_shard(config, 1, lambda stage: pytest.fail("ran twice")) == 0
    assert resolution(allowed).done


def test_few_of_many_shards_list_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, shards, listed = FolderStore(tmp_path), 300, []
    monkeypatch.setattr(store, "list", lambda folder: listed.append(folder) or FolderStore.list(store, folder))
    for shard in range(shards - 1):
        store.write(manifest_key(shard_prefix("demo/i1/generate/key", shard, shards)), b"{}")
        assert join_shards(store, "demo/i1/generate/key", shards, tmp_path) is None
    assert 0 < len(listed) < shards / 5


def test_a_shard_that_is_done_is_not_run_again(config: RunConfig) -> None:
    assert run_shard(config, 0) == 0
    assert run_shard(config, 0, lambda stage: pytest.fail("ran twice")) == 0


def test_when_only_joining_is_missing_any_shard_does_it(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("itool.artifacts.stage.join_shards", lambda *_: None)  # killed between its own manifest and joining
        for shard in range(SHARDS):
            assert run_shard(config, shard) == 0
    assert resolution(config).shards_done == (0, 1, 2)
    assert run_shard(config, 0, lambda stage: pytest.fail("ran twice")) == 0
    assert resolution(config).done


def test_shards_that_join_at_the_same_time_agree(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(Path(config.root))
    with monkeypatch.context() as patch:
        patch.setattr("itool.artifacts.stage.join_shards", lambda *_: None)
        for shard in range(SHARDS):
            run_shard(config, shard)
    prefix = str(resolution(config).prefix)
    saved = tmp_path / "saved"
    shutil.copytree(store.path(prefix), saved)
    for attempt in range(10):
        with ThreadPoolExecutor(SHARDS) as pool:
            scratch = [tmp_path / f"scratch{attempt}-{shard}" for shard in range(SHARDS)]
            manifests = list(pool.map(lambda folder: join_shards(store, prefix, SHARDS, folder), scratch))
        assert len({manifest.digest for manifest in manifests if manifest}) == 1
        assert None not in manifests
        assert verify_artifact(store, prefix) == []
        shutil.rmtree(store.path(prefix))
        shutil.copytree(saved, store.path(prefix))


def test_a_damaged_shard_is_never_joined(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    for shard in (0, 1):
        run_shard(config, shard)
    store = FolderStore(Path(config.root))
    key = next(key for key in store.list(str(resolution(config).prefix)) if "/1-of-3/" in key and key.endswith("pairs.jsonl"))
    store.write(key, store.read(key).replace(b"1", b"2"))
    assert run_shard(config, 2) == 65
    assert "1-of-3" in capfd.readouterr().err
    assert not resolution(config).done


def test_a_shard_writes_only_what_can_be_joined(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_shard(config, 0, lambda stage: stage.write_json("metrics.json", 1)) == 1
    assert "only when they write .jsonl files" in capfd.readouterr().err


def test_metrics_of_shards_add_up() -> None:
    left, right = {"a": 1, "b": {"x": 0.5}, "c": [1], "d": "same"}, {"a": 2, "b": {"x": 1.5, "y": 1}, "c": [2], "d": "same", "e": 1}
    assert add_metrics(left, right) == {"a": 3, "b": {"x": 2.0, "y": 1}, "c": [1, 2], "d": "same", "e": 1}
    with pytest.raises(ItoolError, match="cannot be added"):
        add_metrics({"a": "x"}, {"a": "y"})


def test_a_join_that_lost_its_shards_to_nobody_is_an_error(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in (0, 1):
        run_shard(config, shard)

    def gone(*_: object) -> None:
        raise ArtifactError("run/x does not exist")

    monkeypatch.setattr(commit_module, "fetch", gone)
    assert run_shard(config, 2) == 65


@pytest.mark.parametrize("step", ["read_manifest", "fetch"])
def test_a_join_that_lost_its_shards_to_another_takes_its_result(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for shard in (0, 1):
        run_shard(config, shard)
    store, prefix, do = FolderStore(Path(config.root)), str(resolution(config).prefix), getattr(commit_module, step)
    quicker: list[Manifest | None] = []

    def overtaken(*what: Any) -> Any:
        if not quicker:
            quicker.append(None)
            quicker[0] = join_shards(store, prefix, SHARDS, tmp_path)
        return do(*what)

    monkeypatch.setattr(commit_module, "_PARALLEL", 1)
    monkeypatch.setattr(commit_module, step, overtaken)
    assert run_shard(config, 2) == 0
    assert [found and found.digest for found in quicker] == [resolution(config).digest]


def test_a_shard_that_ends_a_second_time_after_the_join_leaves_nothing(config: RunConfig) -> None:
    """A pod may start twice."""

    def overtaken(stage: Stage) -> None:
        assert [run_shard(config, shard) for shard in range(SHARDS)] == [0] * SHARDS
        generate(stage)

    assert run_shard(config, 0, overtaken) == 0
    done = resolution(config)
    assert done.manifest is not None
    assert len(FolderStore(Path(config.root)).list(str(done.prefix))) == 1 + len(done.manifest.files)


def test_a_shard_that_another_attempt_finishes_while_it_saves_has_not_failed(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends an attempt sweeps the folder of its shard, long before the stage is whole."""
    copy = shutil.copyfile

    def overtaken(source: Path, target: Path) -> None:
        monkeypatch.setattr(shutil, "copyfile", copy)
        copy(source, target)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage_module, "join_shards", lambda *_: None)  # the other attempt is killed before it joins
            assert run_shard(config, 0) == 0

    def save(stage: Stage) -> None:
        (stage.scratch / "done").write_text("1")
        stage.save_checkpoint(stage.scratch, 1)

    assert [run_shard(config, shard) for shard in (1, 2)] == [0, 0]
    monkeypatch.setattr(shutil, "copyfile", overtaken)
    assert run_shard(config, 0, save) == 0
    assert resolution(config).done


def test_what_shards_cost_adds_up_and_their_times_enclose_all(config: RunConfig, tmp_path: Path) -> None:
    assert run_shard(config, 0) == 0
    store, prefix = FolderStore(Path(config.root)), "demo/i1/generate/other"
    first = read_manifest(store, shard_prefix(str(resolution(config).prefix), 0, SHARDS))
    assert first is not None
    for shard, times in enumerate([(5, 9), (2, 4), (3, 7)]):
        began, ended = (first.started + timedelta(seconds=time) for time in times)
        spent = {"seconds": float(times[1]), "startup_seconds": float(shard), "gpu_seconds": 2.0, "peak_memory_bytes": 10 * times[1]}
        folder = tmp_path / f"shard{shard}"
        folder.mkdir()
        (folder / "pairs.jsonl").write_text(f"{shard}\n")
        draft = first.model_copy(update={"shard": shard, "started": began, "ended": ended, **spent})
        commit(store, shard_prefix(prefix, shard, SHARDS), folder, draft)
    joined = join_shards(store, prefix, SHARDS, tmp_path)
    assert joined is not None
    assert [(time - first.started).total_seconds() for time in (joined.started, joined.ended)] == [2, 9]
    assert (joined.seconds, joined.startup_seconds, joined.gpu_seconds, joined.peak_memory_bytes) == (9.0, 2.0, 6.0, 90)
    assert (joined.tokens, joined.shard, joined.shards) == (21, 0, SHARDS)


def test_the_remedy_for_a_damaged_shard_makes_only_that_shard_again(config: RunConfig) -> None:
    for shard in (0, 1):
        run_shard(config, shard)
    store = FolderStore(Path(config.root))
    prefix = shard_prefix(str(resolution(config).prefix), 1, SHARDS)
    key = next(key for key in store.list(prefix) if key.endswith("pairs.jsonl"))
    store.write(key, store.read(key).replace(b"1", b"2"))
    assert run_shard(config, 2) == 65
    assert find_remains(store, prefix) == prefix
    remove_artifact(store, prefix)
    assert resolution(config).shards_done == (0, 2)
    assert run_shard(config, 1) == 0
    assert resolution(config).done
