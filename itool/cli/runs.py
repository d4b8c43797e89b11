"""`itoolctl runs`: what there is under a root, how far, how good, and who works on it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from itool.cli.echo import echo
from itool.cli.options import Output, OutputOption, RootOption, existing_config, note, print_json, run_names
from itool.cli.tables import columns, folded, terminal_width
from itool.commands import DEFAULT_ROOT, itoolctl

if TYPE_CHECKING:
    from itool.operations.run_list import RunLine


def runs(root: RootOption = None, output: OutputOption = Output.text) -> None:
    """List the runs under a root, and who works on them. Each with its state, iterations and best accuracy so far."""
    names = run_names(root)
    lines = [line for name in names if (line := _line(name, root))]
    if output is Output.json:
        print_json([asdict(line) for line in lines])
        return
    if not names:
        note(f"There is no run yet in {root or DEFAULT_ROOT}. Start one with {itoolctl('iterate', root or DEFAULT_ROOT)}.")
    if not lines:
        return
    shown = [
        [
            line.run,
            line.state,
            line.method,
            f"{line.iterations_done}/{line.iterations}",
            f"{line.done}/{line.stages}",
            None if line.best_accuracy is None else f"{100 * line.best_accuracy:.1f} % (i{line.best_iteration})",
        ]
        for line in lines
    ]
    header, width = ["run", "state", "method", "iterations", "stages", "best"], terminal_width()
    echo(columns(header, shown, right=["iterations", "stages"], fold="run", width=width, names=True))
    held = [
        f"{line.run}: process {line.controller.get('pid')} on {line.controller.get('host')} works on it"
        for line in lines
        if line.controller
    ]
    if held:
        echo("\n".join(["", *(part for line in held for part in folded(line, width, indent="  "))]))
    for line in lines:
        if line.problem:
            note(f"{line.run}: {line.problem}")


def _line(name: str, root: str | None) -> RunLine | None:
    """None, and a note, where the stored configuration or artifacts are of no use: one run shall not hide the others."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.client import open_cluster  # noqa: PLC0415
    from itool.errors import ConfigError, InputError, StorageError  # noqa: PLC0415
    from itool.operations.run_list import run_line  # noqa: PLC0415

    try:
        settings = existing_config(name, root)
        return run_line(settings, open_store(settings.root, settings.store), partial(open_cluster, settings.kubernetes.namespace))
    except (ConfigError, InputError, StorageError) as error:
        note(f"{name} is left out: {error}")
        return None
