"""`itoolctl iterate`: run or resume everything that is missing."""

from __future__ import annotations

import shlex
import sys
import time

import typer

from itool.cli.options import (
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


def iterate(
    *,
    config: ConfigOption = None,
    n: CountOption = None,
    sets: SetOption = None,
    method: MethodOption = None,
    run: RunOption = None,
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Run the training iterations: everything that is missing, nothing twice. Ctrl-C stops after a checkpoint; the same command resumes."""
    from itool.cli.display import open_display  # noqa: PLC0415 - every import below costs time that --help does not have
    from itool.cli.report import find_report, result_text  # noqa: PLC0415
    from itool.cluster.session import iterate as iterate_here  # noqa: PLC0415
    from itool.errors import Interrupted  # noqa: PLC0415

    settings = build_config(config, sets, run=run, root=root, n=n, method=method)
    started = time.monotonic()
    try:
        with open_display(settings) as display:
            resolutions = iterate_here(settings, display)
    except Interrupted:
        raise Interrupted(f"run {settings.run} stopped", remedy=f"Resume with: itoolctl {shlex.join(sys.argv[1:])}") from None
    seconds = time.monotonic() - started
    if not display.attempts_ended:
        note(f"Nothing to do: all {len(resolutions)} stages of run {settings.run} are up to date ({seconds:.1f} s).")
    found = find_report(settings)
    if output is Output.json:
        typer.echo(found.text, nl=False)
        return
    typer.echo(result_text(found.report))
    if display.attempts_ended:
        typer.echo(f"this command: {display.attempts_ended} stage processes in {seconds:.0f} s")
    typer.echo(f"report: {found.html}")
