"""Tables on a terminal of 80 columns, and whole lines where nobody looks."""

from __future__ import annotations

import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from itool.artifacts.manifest import Manifest
from itool.artifacts.store import FolderStore
from itool.cli.report import result_text
from itool.cli.status import as_text
from itool.cli.tables import columns, columns_or_below, folded
from itool.cluster.leases import FolderLease
from itool.operations.overview import PodRow, StageRow
from itool.operations.run_status import RunStatus
from tests.cli.command import Within
from tests.cluster.in_memory_cluster import commit_rows
from tests.evaluate.test_compare import result

ROWS: list[list[str | None]] = [
    ["i1/dpo", "run", "dpo.beta 0.1 -> 0.3; input adapter (i0/warmup) may change", "20 s"],
    ["i1/report", "run", None, "1 s"],
]
HEADER = ["stage", "", "why", "time"]


def test_a_table_that_is_too_wide_goes_on_below_in_the_column_that_may_fold() -> None:
    lines = columns(HEADER, ROWS, right=["time"], fold="why", width=50).splitlines()
    assert lines == [
        "stage           why                           time",
        "i1/dpo     run  dpo.beta 0.1 -> 0.3; input    20 s",
        "                adapter (i0/warmup) may",
        "                change",
        "i1/report  run                                 1 s",
    ]


@pytest.mark.parametrize("width", [None, 100])
def test_a_table_with_room_has_one_line_per_row(width: int | None) -> None:
    text = columns(HEADER, ROWS, fold="why", width=width)
    assert text == columns(HEADER, ROWS)
    assert len(text.splitlines()) == 3


def test_a_command_is_never_folded_and_can_be_copied() -> None:
    text = "adapter is missing; remove it with `itoolctl artifacts rm demo/i2/dpo/25` and run again"
    assert folded(text, 30, indent="  ") == [
        "adapter is missing; remove it",
        "  with",
        "  `itoolctl artifacts rm demo/i2/dpo/25`",
        "  and run again",
    ]


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028"])
def test_a_line_break_in_a_cell_ends_no_row(end: str) -> None:
    """A stage's own words for what it counts, or the name of a folder that somebody else has made."""
    rows = [["i1/dpo", f"1/2 up{end}dates {'x' * 50}", "because " * 9], ["i2/dpo", None, None]]
    shown = columns_or_below(["stage", "progress", ""], rows, right=[], below=[""], details=lambda row: row[""] or "", width=80)
    assert [line[:6] for line in shown.splitlines()] == ["stage ", "i1/dpo", "    be", "i2/dpo"]


def test_the_result_table_gives_the_groups_a_table_of_their_own_where_it_is_narrow() -> None:
    report = result("demo")
    whole, narrow = result_text(report), result_text(report, 80)
    assert result_text(report, 120) == whole
    assert max(map(len, narrow.splitlines())) <= 80
    assert [line.split() for line in narrow.splitlines() if "easy" in line] == [["easy", "medium", "hard", "no", "call"]]
    figures = {word for line in whole.splitlines() for word in line.split()}
    assert figures == {word for line in narrow.splitlines() for word in line.split()}, "nothing is lost"
    assert sum("<- kept" in line for line in narrow.splitlines()) == 1


def test_runs_fit_80_columns_and_those_that_somebody_works_on_are_named_below(within: Within) -> None:
    for name in ("demo", "demo-other-method"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text(f"run: {name}\nmethod: rejection_sampling\n")
    lease = FolderLease(Path("runs/demo/controller.lock"))
    lease.acquire()
    _, output, _ = within("runs")
    lease.release()
    lines = output.splitlines()
    assert max(map(len, lines[:3])) <= 80
    assert [line.split()[:2] for line in lines[1:3]] == [["demo", "running"], ["demo-other-method", "stopped"]]
    assert lines[3:] == ["", f"demo: process {os.getpid()} on {socket.gethostname()} works on it"]


def test_runs_with_long_names_fit_80_columns(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["demo", "demo-other-method-seed", "a-name-of-53-characters-which-is-the-most-it-can-have"]
    for name in names:
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").write_text(f"run: {name}\nmethod: rejection_sampling\n")
    lease = FolderLease(Path("runs", names[-1], "controller.lock"))
    lease.acquire()
    _, whole, _ = within("runs")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, shown, _ = within("runs")
    lease.release()
    assert max(map(len, shown.splitlines())) <= 80
    assert len([line for line in shown.splitlines() if "rejection_sampling" in line]) == 3
    table = shown.split("\n\n")[0]
    assert all(name in "".join(line[:25].strip() for line in table.splitlines()) for name in names), "nothing is lost"
    assert all(f"\n{name}  " in f"\n{whole}" for name in names), "in a pipe names stay whole"


def test_artifacts_fit_80_columns_with_what_is_wrong_below_their_names(within: Within, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = FolderStore(Path("runs").absolute()), datetime(2026, 11, 21, tzinfo=UTC)
    damaged = "demo/i1/evaluate/0123456789abcdef"
    for prefix in ("demo/i1/dpo/0123456789abcdef", damaged):
        made = Manifest(run="demo", iteration=1, stage="dpo", key="0123456789abcdef", files={}, started=now, ended=now)
        commit_rows(store, prefix, made)
    next(Path("runs", damaged).rglob("rows.jsonl")).unlink()
    _, piped, _ = within("artifacts", "ls")
    assert len(piped.splitlines()) == 3
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, shown, _ = within("artifacts", "ls")
    assert max(map(len, shown.splitlines())) <= 80
    assert "rows.jsonl is missing" in shown
    assert shown.split() == piped.split(), "nothing is lost"


def test_status_of_a_run_in_a_cluster_fits_80_columns_with_the_pods_below() -> None:
    name, node = "demo-other-method-seed", "ip-10-0-12-30.eu-central-1.compute.internal"
    pods = tuple(PodRow(f"{name}-i1-generate-1-{i}-x7k2p", "running", "", i, node, 200.0, "120/800 examples", ready=True) for i in (0, 1))
    generate = StageRow("i1/generate", "generate", 1, "running", attempt=2, age_seconds=200.0, progress="0/2 shards", pods=pods)
    reason = "unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    dpo = StageRow("i1/dpo", "dpo", 1, "pending", reason, attempt=1, pod=f"{name}-i1-dpo-1-abcde", node="gpu-1", age_seconds=3.0)
    vllm = PodRow(f"{name}-vllm-6d9f7c-abcde", "serving", node="gpu-2", age_seconds=9e3, ready=True, adapter="adapter-0123456789ab")
    done = StageRow("i0/warmup", "warmup", 0, "done", seconds=400.0)
    found = RunStatus(name, "kubernetes", "running", {"pid": 7, "host": f"{name}-controller-x8fz2"}, [done, generate, dpo], [vllm])
    whole, narrow = as_text(found), as_text(found, width=80)
    assert as_text(found, width=240) == whole
    lines = narrow.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["stage", "state", "time", "attempt", "age", "progress"]
    at = next(index for index, line in enumerate(lines) if line.startswith("i1/dpo"))
    assert lines[at + 1] == f"    {name}-i1-dpo-1-abcde on gpu-1: unschedulable: 0/3 nodes are"
    said = {word.rstrip(":") for word in narrow.split()}
    assert {word.rstrip(":") for word in whole.split()} - said == {"pod", "node", "reason"}, "nothing is lost"


@pytest.mark.parametrize(("columns_there", "widest"), [("20", 80), ("80", 80), ("160", 120)])
def test_the_terminal_decides_from_80_columns_on(within: Within, monkeypatch: pytest.MonkeyPatch, columns_there: str, widest: int) -> None:
    monkeypatch.setenv("COLUMNS", columns_there)
    _, whole, _ = within("stages")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, shown, _ = within("stages")
    assert max(map(len, shown.splitlines())) <= widest
    assert (shown == whole) == (widest > 80)
    assert shown.split() == whole.split()
