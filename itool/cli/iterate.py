"""`itoolctl iterate`: run or resume everything that is missing."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from itool.cli.echo import echo
from itool.cli.options import (
    BackendOption,
    ConfigOption,
    CountOption,
    MethodOption,
    Output,
    OutputOption,
    RootOption,
    RunOption,
    SetOption,
    build_config,
    note,
)
from itool.commands import itoolctl

if TYPE_CHECKING:
    from itool.config import RunConfig


def iterate(
    *,
    config: ConfigOption = None,
    n: CountOption = None,
    sets: SetOption = None,
    method: MethodOption = None,
    run: RunOption = None,
    root: RootOption = None,
    backend: BackendOption = None,
    wait_lease: Annotated[
        float,
        typer.Option(
            "--wait-lease", min=0, metavar="SECONDS", help="How long to wait for another controller to give up the run; inf: no end."
        ),
    ] = 0.0,
    output: OutputOption = Output.text,
) -> None:
    """Run the iterations: everything that is missing, nothing twice. Ctrl-C stops after a checkpoint; the same command resumes.

    With --backend kubernetes the stages are Jobs: Ctrl-C leaves them running, the same command follows them, `itoolctl cancel` stops them.
    """
    from itool.cli.display import open_display  # noqa: PLC0415 - every import below costs time that --help does not have
    from itool.cli.report import result_text  # noqa: PLC0415
    from itool.cli.tables import terminal_width  # noqa: PLC0415
    from itool.cluster import session  # noqa: PLC0415
    from itool.errors import Interrupted  # noqa: PLC0415
    from itool.operations.reports import find_report  # noqa: PLC0415

    settings = build_config(config, sets, run=run, root=root, n=n, method=method, backend=backend)
    started = time.monotonic()
    try:
        with open_display(settings) as display:
            resolutions = session.iterate(settings, display, wait_lease_seconds=wait_lease)
    except session.NotStarted:
        raise
    except Interrupted:
        raise _interrupted(settings) from None
    seconds = time.monotonic() - started
    if not display.attempts_ended:
        note(f"Nothing to do: all {len(resolutions)} stages of run {settings.run} are up to date ({seconds:.1f} s).")
    found = find_report(settings)
    if output is Output.json:
        echo(found.text, nl=False)
        return
    echo(result_text(found.report, terminal_width()))
    if display.attempts_ended:
        what = "stage processes" if settings.runtime.backend == "local" else "Jobs"
        echo(f"this command: {display.attempts_ended} {what} in {seconds:.0f} s")
    echo(f"report: {found.html}")


def _interrupted(settings: RunConfig) -> Exception:
    """What goes on without us, and the command that resumes."""
    from itool.errors import Interrupted  # noqa: PLC0415

    resume = f"Resume with: itoolctl {shlex.join(sys.argv[1:])}"
    cancel = itoolctl(f"cancel {settings.run}", settings.root)
    if settings.runtime.backend == "local":
        return Interrupted(f"run {settings.run} stopped", remedy=resume)
    return Interrupted(f"nobody acts on run {settings.run} any more; Jobs that run go on, {cancel} stops them", remedy=resume)
