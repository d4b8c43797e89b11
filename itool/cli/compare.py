"""`itoolctl compare`: runs side by side, with intervals."""

from __future__ import annotations

from typing import Annotated

import typer

from itool.cli.echo import echo
from itool.cli.options import Output, OutputOption, RootOption, existing_config, print_json


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Two or more runs under the same root; the others are set against the first.")
    ],
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Set runs side by side with confidence intervals. They may differ in method, seed or settings."""
    from itool.cli.compare_tables import comparison_text  # noqa: PLC0415
    from itool.cli.tables import terminal_width  # noqa: PLC0415
    from itool.errors import ConfigError  # noqa: PLC0415
    from itool.evaluate.compare import compare_runs  # noqa: PLC0415
    from itool.operations.reports import find_report  # noqa: PLC0415

    if len(runs) < 2:
        raise ConfigError("compare needs at least two runs", remedy="`itoolctl runs` lists them")
    found = {run: find_report(existing_config(run, root)) for run in runs}
    comparison = compare_runs([found[run].report for run in runs], outdated=[run for run in found if not found[run].current])
    if output is Output.json:
        print_json(comparison.model_dump(mode="json"))
    else:
        echo(comparison_text(comparison, terminal_width()))
