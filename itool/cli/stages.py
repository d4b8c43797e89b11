"""`itoolctl stages` and `itoolctl schema`: what the pipeline and its configuration look like."""

from __future__ import annotations

from typing import Annotated

import typer

from itool.cli.echo import echo
from itool.cli.options import Output, OutputOption, print_json
from itool.cli.tables import columns, terminal_width


def stages(output: OutputOption = Output.text) -> None:
    """List the stages and what each does. Also whether it needs a GPU and has shards; -o json: what it writes, which settings it reads."""
    from itool.stages import STAGES  # noqa: PLC0415

    if output is Output.json:
        print_json(
            [
                {"name": spec.name, "purpose": spec.purpose, "writes": list(spec.writes), "settings": list(spec.settings), "gpu": spec.gpu}
                | {"sharded": spec.sharded, "version": spec.version}
                for spec in STAGES.values()
            ]
        )
        return
    rows = [[spec.name, "yes" if spec.gpu else "", "yes" if spec.sharded else "", spec.purpose] for spec in STAGES.values()]
    echo(columns(["stage", "GPU", "shards", "purpose"], rows, fold="purpose", width=terminal_width()))


def schema(chart: Annotated[bool, typer.Option("--chart", help="Of the chart's values instead.")] = False) -> None:
    """Print the JSON Schema of the configuration file."""
    from itool.config import RunConfig  # noqa: PLC0415

    if chart:
        from itool.cluster.chart_values import schema_document  # noqa: PLC0415

        print_json(schema_document())
        return
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema"} | RunConfig.model_json_schema())
