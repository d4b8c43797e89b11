"""A stage from the outside: exit codes, one-line errors, checked inputs, exactly one result."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts.catalogue import copy_artifact, find_artifact, find_remains, list_artifacts, remove_artifact, verify_artifact
from itool.artifacts.manifest import manifest_key
from itool.artifacts.stage import Body, Stage, stage_seed
from itool.artifacts.store import FolderStore, Store
from itool.errors import ArtifactError, ConfigError, DependencyError, InputError, Interrupted, NumericalError, StorageError
from itool.records import Example, Message
from itool.stages import StageId
from tests.artifacts.conftest import Run, S3Server

PREPARE, WARMUP = StageId(0, "prepare"), StageId(0, "warmup")
EXAMPLES = [Example(id=f"e{i}", messages=[Message(role="user", content="q")], response="a") for i in range(3)]


def prepare(stage: Stage) -> None:
    stage.working()
    stage.write("warmup.jsonl", EXAMPLES)
    (stage.output / "model").mkdir()
    (stage.output / "model/weights").write_bytes(b"w" * 1000)
    stage.count(incoming=4, kept=3)
    stage.count(dropped={"too long": 0})
    stage.metrics({"tools": 2})
    stage.tokens(12)


def test_a_stage_runs_once_and_its_result_is_read_by_the_next(run: Run) -> None:
    seen: dict[str, Any] = {}

    def warmup(stage: Stage) -> None:
        seen["examples"] = stage.read(Example, "data", "warmup.jsonl")
        seen["weights"] = (stage.path("data", "model/") / "weights").read_bytes()
        seen["whole"] = sorted(path.name for path in stage.path("data", "").iterdir())
        seen["tools"] = stage.manifest("data").metrics["tools"]
        seen["roles"] = (stage.roles(), stage.has("adapter"))
        stage.write("training.jsonl", [{"loss": 1.0}])

    assert run.stage("prepare", prepare) == 0
    assert run.stage("prepare", lambda stage: pytest.fail("ran twice")) == 0
    assert run.stage("warmup", warmup) == 0
    assert seen == {
        "examples": EXAMPLES,
        "weights": b"w" * 1000,
        "whole": ["model", "warmup.jsonl"],
        "tools": 2,
        "roles": (["data"], False),
    }
    manifest = run.resolution(WARMUP).manifest
    assert manifest is not None
    assert manifest.inputs["data"].digest == run.resolution(PREPARE).manifest.digest


def test_the_manifest_tells_what_happened(folder_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITOOL_IMAGE_DIGEST", "sha256:abc")
    folder_run.stage("prepare", prepare)
    manifest = folder_run.resolution(PREPARE).manifest
    assert manifest is not None
    assert (manifest.counts.incoming, manifest.counts.kept, manifest.counts.dropped) == (4, 3, {"too long": 0})
    assert (manifest.tokens, manifest.metrics, manifest.image_digest) == (12, {"tools": 2}, "sha256:abc")
    assert manifest.seed == stage_seed(17, PREPARE)
    assert 0 <= manifest.startup_seconds <= manifest.seconds
    assert manifest.peak_memory_bytes is None or 10 << 20 < manifest.peak_memory_bytes < 100 << 30
    assert manifest.settings["data.source"] == "demo"
    assert manifest.code_version


@pytest.mark.parametrize(("already", "threads"), [("", "3"), ("5", "5")])
def test_the_threads_of_the_configuration_are_set_unless_a_runner_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, already: str, threads: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    monkeypatch.setattr(os, "environ", inherited | ({"OMP_NUM_THREADS": already} if already else {}))
    seen: list[str] = []

    def body(stage: Stage) -> None:
        seen.append(os.environ["OMP_NUM_THREADS"])
        prepare(stage)

    run = Run(FolderStore(tmp_path / "store"), tmp_path, runtime={"threads": 3})
    assert run.stage("prepare", body) == 0
    assert seen == [threads]


def test_two_equal_runs_have_equal_digests(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        run = Run(FolderStore(tmp_path / name), tmp_path, run=name)
        run.stage("prepare", prepare)
        digests.add(run.resolution(PREPARE).manifest.digest)
    assert len(digests) == 1


def test_nothing_but_artifacts_is_left_behind(folder_run: Run) -> None:
    def body(stage: Stage) -> None:
        (stage.scratch / "big").write_bytes(b"x")
        stage.save_checkpoint(stage.scratch, 1)
        prepare(stage)

    folder_run.stage("prepare", body)
    manifest = folder_run.resolution(PREPARE).manifest
    assert manifest is not None
    assert isinstance(folder_run.store, FolderStore)
    files = [path for path in folder_run.store.folder.rglob("*") if path.is_file()]
    assert len(files) == len(manifest.files) + 1


def failing(error: BaseException) -> Body:
    def body(stage: Stage) -> None:
        (stage.output / "half").write_bytes(b"half")
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("data.jsonl:3: name is missing"), 65, "error: data.jsonl:3: name is missing"),
        (ConfigError("no"), 64, "error: no"),
        (DependencyError("vLLM is gone"), 69, "error: vLLM is gone"),
        (Interrupted("stopped"), 75, "interrupted: stopped"),
        (NumericalError("loss is NaN"), 76, "error: loss is NaN"),
        (OSError(errno.ENOSPC, "full", "/data/x"), 74, "error: cannot use /data/x: No space left on device. Free some space"),
        (OSError(errno.EROFS, "ro", "/data/x"), 74, "error: cannot use /data/x: Read-only file system"),
        (PermissionError(errno.EACCES, "no", "/data/x"), 74, "error: cannot use /data/x: Permission denied"),
        (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero. Set ITOOL_DEBUG=1"),
        (KeyboardInterrupt(), 75, "interrupted: stopped at once"),
    ],
)
def test_an_error_is_an_exit_code_and_one_line(
    folder_run: Run, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert folder_run.stage("prepare", failing(error)) == code
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(line)
    assert folder_run.resolution(PREPARE).state == "missing"
    assert folder_run.store.list("") == {}
    assert folder_run.stage("prepare", prepare) == 0


def test_the_traceback_comes_only_when_asked_for(
    folder_run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_run.stage("prepare", failing(ZeroDivisionError()))
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.setenv("ITOOL_DEBUG", "1")
    folder_run.stage("prepare", failing(ZeroDivisionError()))
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--iteration", "x"], "invalid int value"),
        (["--shard", "2", "--shards", "2"], "use 0 to 1"),
        (["--shards", "2"], "cannot be sharded"),
        (["--iteration", "1"], "i1/prepare is not a stage of this run"),
        (["--set", "seed=-1"], "seed = -1"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml does not exist"),
    ],
)
def test_a_wrong_command_line_is_a_configuration_error(
    folder_run: Run, capfd: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert folder_run.stage("prepare", prepare, *arguments) == 64
    assert text in capfd.readouterr().err.splitlines()[-1]


def test_a_stage_whose_input_is_not_there_says_which(folder_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert folder_run.stage("warmup", prepare) == 65
    assert "stage i0/warmup cannot start: input data (i0/prepare) is not there yet" in capfd.readouterr().err


def test_a_root_that_is_a_file_is_a_storage_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root").write_text("file")
    assert Run(FolderStore(tmp_path / "root"), tmp_path).stage("prepare", prepare) == 74
    assert "A file stands where a folder is needed" in capfd.readouterr().err


def test_too_many_dropped_records_fail_and_the_reasons_are_named(folder_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def body(stage: Stage) -> None:
        stage.write("warmup.jsonl", EXAMPLES)
        stage.count(incoming=10, kept=7, dropped={"too long": 1, "no tool": 2})

    assert folder_run.stage("prepare", body) == 65
    assert "dropped 3 of 10 records (no tool 2, too long 1), more than data.max_dropped_fraction 0.2" in capfd.readouterr().err
    assert folder_run.stage("prepare", body, "--set", "data.max_dropped_fraction=0.3") == 0


def test_a_metric_that_is_not_finite_fails(folder_run: Run) -> None:
    def body(stage: Stage) -> None:
        stage.metrics({"loss": {"last": float("nan")}})

    assert folder_run.stage("prepare", body) == 76


def test_a_stage_that_writes_nothing_fails(folder_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert folder_run.stage("prepare", lambda stage: None) == 1
    assert "wrote no file" in capfd.readouterr().err


def flip(store: Store, key: str) -> None:
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.write(key, bytes(data))


def damage_flip(store: Store, key: str) -> None:
    flip(store, key)


def damage_truncate(store: Store, key: str) -> None:
    store.write(key, store.read(key)[:-1])


def damage_remove(store: Store, key: str) -> None:
    store.delete(key)


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_remove])
def test_a_damaged_input_is_named_never_used_and_repaired_by_removing_it(
    run: Run, capfd: pytest.CaptureFixture[str], damage: Callable[[Store, str], None]
) -> None:
    run.stage("prepare", prepare)
    done = run.resolution(PREPARE)
    assert done.manifest is not None
    prefix = str(done.prefix)
    key = done.manifest.file_key(prefix, "model/weights")
    damage(run.store, key)

    def warmup(stage: Stage) -> None:
        stage.path("data", "model/")
        pytest.fail("a damaged file was handed out")

    assert verify_artifact(run.store, prefix) != []
    assert run.stage("warmup", warmup) == 65
    line = capfd.readouterr().err.splitlines()[-1]
    assert "model/weights" in line
    assert f"`itoolctl artifacts rm {prefix} --root {run.store.root}`" in line
    remove_artifact(run.store, prefix)
    assert run.stage("prepare", prepare) == 0
    assert verify_artifact(run.store, prefix) == []


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_the_largest_files_of_an_input_can_be_left_in_the_store(run: Run) -> None:
    fetched: list[bool] = []

    def warmup(stage: Stage) -> None:
        for suffix in ("weights", ""):
            folder = stage.path("data", "model/", except_suffix=suffix)
            fetched.append((folder / "weights").exists())
        stage.write("training.jsonl", [{"loss": 1.0}])

    run.stage("prepare", prepare)
    assert run.stage("warmup", warmup) == 0
    assert fetched == [False, True]


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_flipped_byte_in_the_cache_is_fetched_again(run: Run) -> None:
    seen: list[bytes] = []

    def warmup(stage: Stage) -> None:
        path = stage.path("data", "model/weights")
        seen.append(path.read_bytes())
        path.write_bytes(b"v" * 1000)
        raise Interrupted("again")

    run.stage("prepare", prepare)
    for _ in range(2):
        assert run.stage("warmup", warmup) == 75
    assert seen == [b"w" * 1000] * 2


def test_a_bad_line_in_an_input_is_named_by_file_and_line(folder_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def bad(stage: Stage) -> None:
        (stage.output / "warmup.jsonl").write_text(EXAMPLES[0].model_dump_json() + '\n\n{"id": ""}\n')

    folder_run.stage("prepare", bad)
    assert folder_run.stage("warmup", lambda stage: stage.read(Example, "data", "warmup.jsonl").clear()) == 65
    assert "warmup.jsonl:3 is no Example: id: String should have at least 1 character" in capfd.readouterr().err


def test_asking_for_a_file_that_is_not_there_says_what_is(folder_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    folder_run.stage("prepare", prepare)
    assert folder_run.stage("warmup", lambda stage: print(stage.path("data", "no.jsonl"))) == 65  # noqa: T201
    assert "has no 'no.jsonl'; it has model/weights, warmup.jsonl" in capfd.readouterr().err


def test_the_slower_of_two_equal_attempts_also_succeeds(run: Run) -> None:
    def slow(stage: Stage) -> None:
        assert run.stage("prepare", prepare) == 0  # another process is quicker
        prepare(stage)

    assert run.stage("prepare", slow) == 0
    assert len(run.store.list("")) == 3


def test_the_slower_of_two_different_attempts_leaves_the_first_one_whole(run: Run) -> None:
    def slow(stage: Stage) -> None:
        assert run.stage("prepare", prepare) == 0
        stage.write("warmup.jsonl", EXAMPLES[:1])

    assert run.stage("prepare", slow) == 0
    assert verify_artifact(run.store, str(run.resolution(PREPARE).prefix)) == []
    assert len(run.store.list("")) == 3


def test_the_slower_attempt_does_not_succeed_by_a_damaged_result_of_the_first(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def slow(stage: Stage) -> None:
        assert run.stage("prepare", prepare) == 0
        done = run.resolution(PREPARE)
        assert done.manifest is not None
        run.store.delete(done.manifest.file_key(str(done.prefix), "model/weights"))
        stage.write("warmup.jsonl", EXAMPLES[:1])

    assert run.stage("prepare", slow) == 65
    assert "model/weights is missing. Remove it with" in capfd.readouterr().err


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_server_that_dies_before_the_commit_costs_only_a_retry(run: Run, s3_server: S3Server, capfd: pytest.CaptureFixture[str]) -> None:
    def unlucky(stage: Stage) -> None:
        prepare(stage)
        s3_server.kill()

    try:
        assert run.stage("prepare", unlucky) == 69
        assert run.stage("prepare", prepare) == 69
    finally:
        s3_server.start()
    assert "does not answer" in capfd.readouterr().err
    assert run.resolution(PREPARE).state == "missing"
    assert run.stage("prepare", prepare) == 0
    assert verify_artifact(run.store, str(run.resolution(PREPARE).prefix)) == []


def test_a_full_disk_ends_the_stage_and_a_larger_one_continues(small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def big(stage: Stage) -> None:
        (stage.output / "big").write_bytes(b"x" * 1_000_000)

    run = Run(FolderStore(small_disk / "store"), tmp_path)
    assert run.stage("prepare", big) == 74
    assert "No space left on device" in capfd.readouterr().err.splitlines()[-1]
    assert run.store.list("") == {}
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert run.stage("prepare", big) == 0


def test_what_a_killed_attempt_left_goes_with_the_next_ones_commit(folder_run: Run) -> None:
    """An attempt of its own is killed at its manifest, or while it writes a file of its checkpoint."""
    left = ("checkpoints/00000001-ab/checkpoint.json", "checkpoints/00000002-ab/state.pt.01234567.itool-tmp", "shards/0-of-2/0123/x.jsonl")

    def leave() -> None:
        for name in left:
            folder_run.store.write(f"{folder_run.resolution(PREPARE).prefix}/{name}", b"1")

    def body(stage: Stage) -> None:
        leave()
        prepare(stage)

    assert folder_run.stage("prepare", body) == 0
    files = [path for path in (Path(folder_run.store.root) / "demo/i0/prepare").rglob("*") if path.is_file()]
    assert len(files) == 3
    leave()
    assert folder_run.stage("prepare", prepare) == 0
    assert [path for path in (Path(folder_run.store.root) / "demo/i0/prepare").rglob("*") if path.is_file()] == files
    leave()
    remove_artifact(folder_run.store, str(folder_run.resolution(PREPARE).prefix))
    assert not (Path(folder_run.store.root) / "demo").exists()


def test_an_attempt_that_comes_too_late_writes_over_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket with keys of its own the same bytes get another ETag, which breaks downloads under way."""

    def slow(stage: Stage) -> None:
        assert run.stage("prepare", prepare) == 0
        monkeypatch.setattr(type(run.store), "upload", lambda *_, **__: pytest.fail("stored again what others may be reading"))
        prepare(stage)

    assert run.stage("prepare", slow) == 0


def test_progress_is_throttled_and_the_last_one_always_seen(folder_run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def body(stage: Stage) -> None:
        for done in range(1, 1001):
            stage.progress(done, 1000, "examples", loss=0.5)
        prepare(stage)

    folder_run.stage("prepare", body)
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    progress = [event for event in events if event["event"] == "progress"]
    assert 2 <= len(progress) < 20
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["unit"], progress[-1]["loss"]) == (1000, 1000, "examples", 0.5)
    assert progress[-1]["rate"] > 0
    assert [event["event"] for event in events if event["event"].startswith("stage")] == [
        "stage started",
        "stage working",
        "stage finished",
    ]


def test_artifacts_are_listed_found_and_copied_out(run: Run, tmp_path: Path) -> None:
    run.stage("prepare", prepare)
    entry = list_artifacts(run.store)[0]
    assert (entry.problem, entry.prefix) == (None, run.resolution(PREPARE).prefix)
    assert find_artifact(run.store, "demo/i0/prepare") == entry.prefix == find_artifact(run.store, entry.prefix[:-3])
    with pytest.raises(InputError, match="no artifact"):
        find_artifact(run.store, "demo/i0/prep")
    list(copy_artifact(run.store, entry.prefix, tmp_path / "out", ["model/"]))
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["weights"]
    with pytest.raises(InputError, match="has no 'x'"):
        next(copy_artifact(run.store, entry.prefix, tmp_path / "out", ["x"]))
    assert next(copy_artifact(run.store, entry.prefix, tmp_path / "all")) == tmp_path / "all/model/weights"
    assert not (tmp_path / "all/warmup.jsonl").exists()  # a large artifact shows how far it is


def test_a_copy_that_is_there_is_whole(run: Run, tmp_path: Path) -> None:
    run.stage("prepare", prepare)
    prefix = find_artifact(run.store, "demo/i0/prepare")
    list(copy_artifact(run.store, prefix, tmp_path / "out", ["model/"]))
    before = (tmp_path / "out/model/weights").read_bytes()
    key = next(key for key in run.store.list(prefix) if key.endswith("weights"))
    run.store.write(key, before[:-1] + b"x")
    for out in ("out", "new"):
        with pytest.raises(ArtifactError, match=r"was altered: .*\. Remove it with `itoolctl artifacts rm demo/i0/prepare/"):
            list(copy_artifact(run.store, prefix, tmp_path / out, ["model/"]))
    found = [path for path in tmp_path.rglob("model/*") if "out" in path.parts or "new" in path.parts]
    assert found == [tmp_path / "out/model/weights"]
    assert found[0].read_bytes() == before
    run.store.write(key, before)
    (tmp_path / "taken/model/weights").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"A folder stands where a file is needed: move it away, or name another folder"):
        list(copy_artifact(run.store, prefix, tmp_path / "taken", ["model/"]))


def test_nobody_is_told_to_remove_what_a_newer_version_wrote(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run.stage("prepare", prepare)
    made = run.resolution(PREPARE)
    assert made.manifest is not None
    newer = made.manifest.model_copy(update={"schema_version": 99, "code_version": "9.0"})
    run.store.write(manifest_key(str(made.prefix)), newer.to_json().encode())
    assert run.stage("prepare", prepare) == 65
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.endswith("Use itool 9.0 or newer")
    assert "artifacts rm" not in line


@pytest.mark.parametrize("name", ["demo", "demo/", "demo/i0"])
def test_what_is_removed_is_named_by_its_stage(run: Run, name: str) -> None:
    run.stage("prepare", prepare)
    with pytest.raises(InputError, match=r"names no stage; it holds demo/i0/prepare/\w+\. Give run/iteration/stage"):
        find_remains(run.store, name)
    assert find_remains(run.store, "demo/i0/prepare") == run.resolution(PREPARE).prefix
