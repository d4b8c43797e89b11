"""`itoolctl status`: how far a run is, what works on it, and the reason of every wait and failure."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itool.cli.options import (
    BackendOption,
    ConfigOption,
    Output,
    OutputOption,
    RootOption,
    RunArgument,
    existing_config,
    given_config,
    print_json,
)
from itool.cli.tables import columns_or_below, duration, folded, terminal_width
from itool.names import Backend

if TYPE_CHECKING:
    from itool.config import RunConfig
    from itool.operations.overview import PodRow, StageRow
    from itool.operations.run_status import RunStatus, StatusReader

STATUS_VERSION = 1
"""Version of the JSON document (docs/cli.md). It rises when a field changes its meaning or goes; a new field does not raise it."""

WATCH_SECONDS = 2.0
SHOWN_PODS = 8
FOLDED_ITERATIONS = 3
BELOW = ("pod", "node", "reason")
"""Columns that a table for a narrow terminal has no room for."""
HEADER = ("stage", "state", "time", "attempt", "pod", "node", "age", "progress", "reason")
CLEAR_SCREEN = "\x1b[H\x1b[2J"


def status(
    *,
    run: RunArgument = None,
    config: ConfigOption = None,
    root: RootOption = None,
    backend: BackendOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until the run is done, or Ctrl-C.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Show how far a run is, and why something waits or failed. Shown are its stages, their pods, and vLLM.

    Ends with 69 when the store or the cluster did not answer, 74 when a folder cannot be read; what could be read is shown all the same.
    """
    settings, known = _settings(run, root, config, backend)
    reader, shown = open_reader(settings), ""
    while True:
        found = reader.read()
        if not known and "artifacts" not in found.unread:  # the store answers again, and has the run's own
            settings, known = _settings(run, root, config, backend)
            reader = open_reader(settings)
            continue
        text = as_text(found, with_problem=watch, width=terminal_width()) if output is Output.text else ""
        if output is Output.json:
            print_json(as_document(found))
        elif text != shown:
            typer.echo((CLEAR_SCREEN if watch and sys.stdout.isatty() else "") + text)
        shown = text
        if not watch or found.state == "done":
            break
        time.sleep(WATCH_SECONDS)
    if reader.error is not None:
        raise reader.error


def _settings(run: str | None, root: str | None, config: Path | None, backend: Backend | None) -> tuple[RunConfig, bool]:
    """The run's configuration; while the store does not answer, what finds the Jobs of a run that is said to be in a cluster (False)."""
    from itool.errors import DependencyError  # noqa: PLC0415

    try:
        return existing_config(run, root, config, backend=backend, hurried=True), True
    except DependencyError:
        if run is None or backend != "kubernetes":
            raise
        return given_config(None, [f"run={json.dumps(run)}"], root=root, backend=backend), False


def open_reader(settings: RunConfig) -> StatusReader:
    """Who reads the run's status: with its cluster, or from this machine's logs."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.client import open_cluster  # noqa: PLC0415
    from itool.operations.run_status import StatusReader  # noqa: PLC0415

    cluster = open_cluster(settings.kubernetes.namespace, hurried=True) if settings.runtime.backend == "kubernetes" else None
    return StatusReader(settings, open_store(settings.root, settings.store, hurried=True), cluster)


def as_document(found: RunStatus) -> dict[str, Any]:
    """The status as JSON."""
    return {"schema": STATUS_VERSION} | asdict(found) | {"done": found.done, "total": len(found.stages)}


def as_text(found: RunStatus, *, with_problem: bool = True, width: int | None = None) -> str:
    """The status as a table and a line that sums it up; without the problem where the command ends with it."""
    rows = [cells for group in stage_lines(found.stages) for cells in group]
    rows += [_pod_cells("vLLM", row) for row in found.serving or ()]
    rows += [_pod_cells("controller", row) for row in found.controller_pods if row.state != "succeeded"]
    used = [index for index, name in enumerate(HEADER) if name in ("stage", "state", "reason") or any(row[index] for row in rows)]
    header, cells = [HEADER[index] for index in used], [[row[index] for index in used] for row in rows]
    table = columns_or_below(header, cells, right=("time", "attempt", "age"), below=BELOW, details=_details, width=width)
    holder = found.controller
    worker = f"process {holder.get('pid')} on {holder.get('host')} works on it" if holder else "nothing works on it"
    if "lock" in found.unread:
        worker = "who works on it cannot be seen"
    line = f"run {found.run}: {found.state}, {found.done} of {len(found.stages)} stages done; {worker}"
    if "artifacts" in found.unread:
        line = f"run {found.run}: {'only its Jobs' if found.stages else 'nothing of it'} can be seen"
    said = [line, found.problem] if found.problem and with_problem else [line]
    return "\n".join([table, "", *(part for text in said for part in folded(text, width, indent="  "))])


def _details(row: Mapping[str, str | None]) -> str:
    pod, node, reason = (row.get(name) for name in BELOW)
    where = f"{pod} on {node}" if pod and node else pod or node
    return ": ".join(filter(None, (where, reason)))


def stage_lines(stages: Sequence[StageRow]) -> Iterator[list[list[str | None]]]:
    """The rows of every stage; of many iterations in a row that are all done, or all waiting, one line."""
    iterations = [list(rows) for _, rows in groupby(stages, key=lambda row: row.iteration)]
    for state, group in groupby(iterations, key=_common_state):
        members = list(group)
        if state is None or len(members) < FOLDED_ITERATIONS:
            yield from ([line for row in rows for line in _stage_cells(row)] for rows in members)
            continue
        rows = [row for member in members for row in member]
        spent = sum(row.seconds or 0.0 for row in rows)
        name = f"i{rows[0].iteration} .. i{rows[-1].iteration}"
        yield [[name, state, duration(spent) if spent else None, *[None] * 5, f"{len(rows)} stages"]]


def _common_state(rows: Sequence[StageRow]) -> str | None:
    states = {row.state for row in rows}
    return states.pop() if states in ({"done"}, {"waiting"}) and rows[0].iteration else None


def _stage_cells(row: StageRow) -> Iterator[list[str | None]]:
    seconds = None if row.seconds is None else duration(row.seconds)
    attempt = None if row.attempt is None else str(row.attempt)
    pod = row.pod or (f"{len(row.pods)} pods" if row.pods else None)
    yield [row.stage, row.state, seconds, attempt, pod, row.node, _age(row.age_seconds), row.progress, row.reason]
    if len(row.pods) > 1:
        yield from (_pod_cells(f"  shard {pod.shard}" if pod.shard is not None else "  pod", pod) for pod in row.pods[:SHOWN_PODS])
    if len(row.pods) > SHOWN_PODS:
        yield [f"  and {len(row.pods) - SHOWN_PODS} more", *[None] * 8]


def _pod_cells(name: str, row: PodRow) -> list[str | None]:
    return [name, row.state, None, None, row.pod, row.node, _age(row.age_seconds), row.progress or row.adapter, row.reason]


def _age(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)
