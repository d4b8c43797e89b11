"""A checkpoint is used only when every byte of it is what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from itool.artifacts.checkpoints import CHECKPOINT_NAME, CheckpointManifest, Checkpoints
from itool.artifacts.manifest import describe_file
from itool.artifacts.stage import Stage
from itool.artifacts.store import Store
from itool.errors import InputError, Interrupted
from itool.stages import StageId
from tests.artifacts.conftest import Run
from tests.fakes.memory_store import MemoryStore

PREFIX = "demo/i1/dpo/key"


@pytest.fixture
def checkpoints(store: Store, tmp_path: Path) -> Checkpoints:
    """Two saved checkpoints, 10 and 20."""
    checkpoints = Checkpoints(store, PREFIX, "aaaa")
    for done in (10, 20):
        save(checkpoints, tmp_path, done)
    return checkpoints


def save(checkpoints: Checkpoints, tmp_path: Path, done: int) -> str:
    folder = tmp_path / f"save{done}"
    (folder / "optimizer").mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(f"weights {done}")
    (folder / "optimizer/state").write_text(f"state {done}")
    return checkpoints.save(folder, done, seconds=float(done), gpu_seconds=0.0, tokens=done)


def latest(store: Store, tmp_path: Path) -> int | None:
    """What another attempt resumes from."""
    found = Checkpoints(store, PREFIX, "bbbb").latest(tmp_path / "scratch")
    if found is None:
        return None
    assert (found.folder / "optimizer/state").read_text() == f"state {found.manifest.done}"
    assert found.manifest.tokens == found.manifest.done
    return found.manifest.done


def test_there_is_none_at_first(store: Store, tmp_path: Path) -> None:
    assert latest(store, tmp_path) is None


def test_the_newest_is_used_and_the_last_two_are_kept(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    assert latest(store, tmp_path) == 20
    save(checkpoints, tmp_path, 30)
    folders = {key.split("/")[5] for key in store.list(PREFIX)}
    assert folders == {"00000020-aaaa", "00000030-aaaa"}
    assert latest(store, tmp_path) == 30


@pytest.mark.parametrize("path", ["{home}/.bashrc", "../../home/.bashrc", "optimizer/../../../home/.bashrc"])
def test_a_checkpoint_writes_nothing_outside_its_folder(tmp_path: Path, path: str) -> None:
    """S3 takes such keys, and who may write to the bucket can make such a checkpoint."""
    (tmp_path / "home").mkdir()
    (tmp_path / "evil").write_text("alias ls=evil")
    store, folder, name = MemoryStore(), f"{PREFIX}/checkpoints/00000010-aaaa", path.format(home=tmp_path / "home")
    store.upload(tmp_path / "evil", f"{folder}/{name}")
    listed = CheckpointManifest.model_construct(done=10, files={name: describe_file(tmp_path / "evil")})
    store.write(f"{folder}/{CHECKPOINT_NAME}", listed.model_dump_json().encode())
    assert Checkpoints(store, PREFIX, "bbbb").latest(tmp_path / "scratch") is None
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("name", ["weights", CHECKPOINT_NAME])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(store: Store, tmp_path: Path, checkpoints: Checkpoints, name: str, how: str) -> None:
    key = f"{PREFIX}/checkpoints/00000020-aaaa/{name}"
    data = store.read(key)
    if how == "remove":
        store.delete(key)
    else:
        store.write(key, data[: len(data) // 2] if how == "truncate" else data.replace(b"weights", b"veights"))
    assert latest(store, tmp_path) == 10


def test_nothing_of_a_damaged_checkpoint_is_left_in_the_one_that_is_used(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    (tmp_path / "save30").mkdir()
    (tmp_path / "save30/a_shard_more").write_text("whole")
    store.delete(f"{save(checkpoints, tmp_path, 30)}/weights")
    assert latest(store, tmp_path) == 20
    assert sorted(path.name for path in (tmp_path / "scratch/resumed").iterdir()) == ["optimizer", "weights"]


def test_a_new_checkpoint_outlives_damaged_ones_that_were_ahead(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    for done in (10, 20):
        store.write(f"{PREFIX}/checkpoints/000000{done}-aaaa/weights", b"damaged")
    later = Checkpoints(store, PREFIX, "cccc")
    for done in (4, 6):
        save(later, tmp_path, done)
        assert latest(store, tmp_path) == done


def test_discarded_checkpoints_do_not_come_before_a_later_one(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    later = Checkpoints(store, PREFIX, "cccc")
    later.discard()
    assert latest(store, tmp_path) is None
    save(later, tmp_path, 4)
    assert latest(store, tmp_path) == 4


def test_a_checkpoint_that_was_cut_off_is_passed_over_and_swept_later(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    store.write(f"{PREFIX}/checkpoints/00000025-cccc/weights", b"half")
    assert latest(store, tmp_path) == 20
    for done in (30, 40):
        save(checkpoints, tmp_path, done)
    assert not any("cccc" in key for key in store.list(PREFIX))


def test_one_that_was_cut_off_does_not_take_the_place_of_a_whole_one(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    store.write(f"{PREFIX}/checkpoints/00000020-0001/weights", b"half")
    save(checkpoints, tmp_path, 30)
    assert {key.split("/")[5] for key in store.list(PREFIX)} == {"00000020-aaaa", "00000030-aaaa"}


def test_two_attempts_never_write_into_each_others_checkpoint(store: Store, tmp_path: Path, checkpoints: Checkpoints) -> None:
    save(Checkpoints(store, PREFIX, "bbbb"), tmp_path, 20)
    assert latest(store, tmp_path) == 20
    assert {key.split("/")[5] for key in store.list(PREFIX)} == {"00000020-aaaa", "00000020-bbbb"}


def test_saving_changes_nothing_in_the_folder_and_later_changes_do_not_reach_the_store(store: Store, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store, PREFIX, "aaaa")
    save(checkpoints, tmp_path, 10)
    (tmp_path / "save10/weights").write_text("overwritten in place")
    assert latest(store, tmp_path) == 10


def test_an_empty_checkpoint_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty"):
        Checkpoints(store, PREFIX, "aaaa").save(tmp_path / "empty", 1, seconds=0, gpu_seconds=0, tokens=0)


def test_what_an_attempt_had_spent_counts_to_the_one_that_resumes(folder_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: Stage) -> None:
        (stage.scratch / "state").write_text("1")
        stage.tokens(7)
        stage.save_checkpoint(stage.scratch, 1)
        raise Interrupted("stopped")

    def resume(stage: Stage) -> None:
        stage.latest_checkpoint()
        stage.tokens(1)
        stage.write_json("x.json", 1)

    monkeypatch.setattr("itool.artifacts.stage.gpus_in_use", lambda: 2)
    monkeypatch.setattr(Stage, "_elapsed", lambda _: 100.0)
    assert folder_run.stage("prepare", stop) == Interrupted.exit_code
    assert folder_run.stage("prepare", resume) == 0
    manifest = folder_run.resolution(StageId(0, "prepare")).manifest
    assert manifest is not None
    assert (manifest.seconds, manifest.gpu_seconds, manifest.tokens) == (200.0, 400.0, 8)
