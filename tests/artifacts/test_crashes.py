"""A stage that is killed before each of its writes in turn, or meets another attempt there: what others see, and what is there in the end.

In a folder every change of the file system is such a place, elsewhere every request. A killed stage does nothing any more, its clean-up
included. What a power cut leaves of writes that were done is not seen here: test_store.py says what is on the disk before what.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts import commit
from itool.artifacts import stage as stage_module
from itool.artifacts.catalogue import verify_artifact
from itool.artifacts.manifest import manifest_key
from itool.artifacts.resolve import resolve
from itool.artifacts.stage import Body, Stage
from itool.artifacts.store import FolderStore, Store
from tests.artifacts.conftest import Run
from tests.artifacts.test_stage import PREPARE
from tests.fakes.memory_store import MemoryStore

CHANGES = ("mkdir", "rename", "replace", "link", "unlink", "rmdir")


class Killed(BaseException):
    """The process is gone."""


def long(stage: Stage) -> None:
    """Saves a checkpoint before it is done; its result is the same however often it began anew."""
    folder = stage.latest_checkpoint()
    done = int((folder / "done").read_text()) if folder else 0
    if not done:
        done = 1
        (stage.scratch / "done").write_text("1")
        stage.save_checkpoint(stage.scratch, done)
    stage.write("warmup.jsonl", [{"done": done}])
    stage.write_json("model/config.json", done)


def other(stage: Stage) -> None:
    """As a GPU may give another last bit."""
    stage.write("warmup.jsonl", [{"done": 2}])


def short(stage: Stage) -> None:
    stage.write("training.jsonl", [{"loss": 1.0}])


class Scene:
    """A run in an empty store. All its files lie below a folder, or as objects in memory."""

    def __init__(self, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "tmp").mkdir(parents=True)
        self.folder = folder
        self.store: Store = FolderStore(folder / "store") if kind == "folder" else MemoryStore()
        self.run = Run(self.store, folder)
        monkeypatch.setattr(stage_module, "open_store", lambda *_: self.store)
        monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))

    def prepare(self, body: Body, before: Callable[[int], object] = lambda _: None) -> int | None:
        """Run an attempt that calls `before` ahead of each of its writes, with its number; None when that kills it."""
        try:
            with self._watched(before):
                return self.run.stage("prepare", body)
        except Killed:
            for descriptor in Path("/proc/self/fd").iterdir():  # the kernel closes what a process held
                with contextlib.suppress(OSError):
                    if descriptor.readlink().is_relative_to(self.folder):
                        os.close(int(descriptor.name))
            return None

    def look(self) -> str | None:
        """As somebody who reads the store at any moment: what is done is whole. Gives the digest of what is done."""
        found = self.run.resolution(PREPARE)
        assert found.state != "damaged", found.reason
        assert not found.done or verify_artifact(self.store, str(found.prefix)) == []
        return found.digest

    def left_behind(self) -> set[str]:
        """What is there beside artifacts, when the next stage has removed what belongs to no process any more."""
        if list(self.folder.rglob("i0-prepare-*")):
            assert self.run.stage("warmup", short) == 0
        wanted = set()
        for found in resolve(self.store, self.run.config).values():
            if found.manifest is not None:
                wanted |= {manifest_key(str(found.prefix))}
                wanted |= {found.manifest.file_key(str(found.prefix), path) for path in found.manifest.files}
        files = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        objects = self.store.list("") if isinstance(self.store, MemoryStore) else {}
        return {name.removeprefix("store/") for name in [*files, *objects]} - wanted - {"config.yaml"}

    @contextlib.contextmanager
    def _watched(self, before: Callable[[int], object]) -> Iterator[None]:
        numbers, inside = itertools.count(1), False

        def watch(write: Callable[..., Any], concerns: Callable[..., bool]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal inside
                if not inside and concerns(*arguments, **named):
                    inside = True
                    try:
                        before(next(numbers))
                    finally:
                        inside = False
                return write(*arguments, **named)

            return call

        def below(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> bool:
            return dir_fd is not None or str(path).startswith(str(self.folder))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commit, "_PARALLEL", 1)
            for name in CHANGES:
                patch.setattr(os, name, watch(getattr(os, name), below))
            patch.setattr(io, "open", watch(io.open, lambda path, mode="r", *_, **__: below(path) and mode not in ("r", "rb")))
            for name in ("write", "create", "delete"):
                patch.setattr(MemoryStore, name, watch(getattr(MemoryStore, name), lambda *_: True))
            yield


@pytest.fixture(params=["folder", "memory"])
def new_scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Scene]:
    numbers = itertools.count()
    return lambda: Scene(request.param, tmp_path / str(next(numbers)), monkeypatch)


def write_count(scene: Scene, body: Body) -> int:
    counted = []
    assert scene.prepare(body, counted.append) == 0
    return len(counted)


def test_whoever_looks_before_any_write_sees_the_artifact_whole_or_not_at_all(new_scene: Callable[[], Scene]) -> None:
    scene, seen = new_scene(), set()
    assert scene.prepare(long, lambda _: seen.add(scene.look())) == 0
    assert seen == {None, scene.look()}


@pytest.mark.slow
def test_a_stage_that_is_killed_before_any_write_ends_as_if_it_had_not_been(new_scene: Callable[[], Scene]) -> None:
    undisturbed = new_scene()

    def kill(at: int) -> Callable[[int], None]:
        def before(number: int) -> None:
            if number >= at:
                raise Killed

        return before

    for at in range(1, write_count(undisturbed, long) + 1):
        scene = new_scene()
        assert scene.prepare(long, kill(at)) is None
        scene.look()
        assert scene.prepare(long) == 0
        assert scene.look() == undisturbed.look()
        assert scene.left_behind() == set()


@pytest.mark.slow
@pytest.mark.parametrize("beside", [long, other])
def test_of_two_attempts_one_stands_wherever_the_slower_one_is_when_the_other_runs(new_scene: Callable[[], Scene], beside: Body) -> None:
    for at in range(1, write_count(new_scene(), long) + 1):
        scene = new_scene()

        def before(number: int, at: int = at, scene: Scene = scene) -> None:
            if number == at:
                assert scene.run.stage("prepare", beside) == 0
                scene.look()

        assert scene.prepare(long, before) == 0
        scene.look()
        assert scene.left_behind() == set()
