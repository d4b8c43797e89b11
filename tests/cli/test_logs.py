"""`itoolctl logs` where several logs follow each other, or nobody reads on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from itool.artifacts.store import FolderStore
from itool.cli.logs import Printer, _copy, _follow_all, _show_local
from itool.cluster.api_answers import ClusterDown
from itool.cluster.session import open_lease
from itool.config import RunConfig
from itool.operations.attempt_logs import Wanted
from itool.operations.live_logs import ClusterLogs, PodText


def test_a_newer_attempt_does_not_swallow_the_last_line_of_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = RunConfig(root=str(tmp_path)), FolderStore(tmp_path)
    folder = store.path("demo/logs")
    folder.mkdir(parents=True)
    (folder / "i0-prepare-1.log").write_text("killed in the midd")
    lease = open_lease(store, config.run)
    lease.acquire()

    def try_again(_seconds: float) -> None:
        (folder / "i0-prepare-2.log").write_text("done\n")
        lease.release()

    monkeypatch.setattr("itool.cli.logs.time.sleep", try_again)
    assert _show_local(config, store, Wanted("prepare"), Printer("prepare", as_json=False), follow=True)
    assert capsys.readouterr().out == "killed in the midd\ndone\n"


@dataclass
class NobodyReads:
    """Pods' logs whose reader has gone."""

    pod: str = "demo-i1-generate-1-0"
    key: tuple[int, int, int] = (1, 0, 1)

    def read(self, _text: object, *, follow: bool) -> Iterator[bytes]:
        yield b"following\n" if follow else b""
        raise BrokenPipeError(32, "Broken pipe")


def test_a_closed_pipe_is_the_main_threads_to_report(capsys: pytest.CaptureFixture[str]) -> None:
    logs: Any = NobodyReads()
    with pytest.raises(BrokenPipeError):
        _follow_all(logs, [logs], Printer("generate", as_json=False))
    assert capsys.readouterr() == ("following\n", "")


class Gone:
    """A cluster whose node is lost: the log breaks off, and the pod is there no more."""

    def pod_log(self, *_: Any, **_options: Any) -> Iterator[bytes]:
        yield b"2026-01-01T00:00:00Z one\n2026-01-01T00:00:01Z tw"
        raise ClusterDown("the connection is gone")

    def list(self, *_: Any, **_options: Any) -> tuple[list[Any], str]:
        return [], "1"


def test_following_a_pod_ends_when_it_is_gone_with_what_there_was_of_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, cluster = Wanted("generate"), cast(Any, Gone())
    logs = ClusterLogs(RunConfig(), FolderStore(tmp_path), cluster, wanted, sleep=lambda _: pytest.fail("waits for more"))
    _copy(logs, PodText((1, 0, 1), "demo-i1-generate-1-0"), Printer("generate", as_json=False), follow=True)
    assert capsys.readouterr().out == "one\ntw\n"


class Lost:
    """A cluster whose node has no file of the log any more, and says so in place of it, without a time."""

    def pod_log(self, *_: Any, **_options: Any) -> Iterator[bytes]:
        yield b"unable to retrieve container logs for containerd://7"


def test_what_a_node_says_in_place_of_a_log_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = ClusterLogs(RunConfig(), FolderStore(tmp_path), cast(Any, Lost()), Wanted("dpo"))
    _copy(logs, PodText((1, 0, 1), "demo-i1-dpo-1"), Printer("dpo", as_json=False), follow=False)
    assert capsys.readouterr().out == "unable to retrieve container logs for containerd://7\n"


def test_of_a_stages_attempts_the_newest_of_the_last_iteration_is_shown() -> None:
    there = [(1, 0, 3), (2, 0, 1), (2, 0, 2), (2, 1, 1), (10, 0, 1), (10, 1, 1), (10, 1, 2)]
    assert Wanted("generate").choose(there) == [(10, 0, 1), (10, 1, 2)]
    assert Wanted("generate", iteration=2).choose(there) == [(2, 0, 2), (2, 1, 1)]
    assert Wanted("generate", attempt=3).choose(there) == [(1, 0, 3)]
    assert Wanted("generate", iteration=3).choose(there) == []
