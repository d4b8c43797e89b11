"""`itoolctl logs` where several logs follow each other, or nobody reads on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts.store import FolderStore
from itool.cli.logs import Printer, _follow_all, _show_local
from itool.cluster.session import open_lease
from itool.config import RunConfig
from itool.operations.attempt_logs import Wanted


def test_a_newer_attempt_does_not_swallow_the_last_line_of_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, store = RunConfig(root=str(tmp_path)), FolderStore(tmp_path)
    folder = store.path("demo/logs")
    folder.mkdir(parents=True)
    (folder / "i0-prepare-1.log").write_text("killed in the midd")
    lease = open_lease(store, config.run)
    lease.acquire()

    def try_again() -> None:
        (folder / "i0-prepare-2.log").write_text("done\n")
        lease.release()

    timer = threading.Timer(0.5, try_again)
    timer.start()
    assert _show_local(config, store, Wanted("prepare"), Printer("prepare", as_json=False), follow=True)
    timer.join()
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
