"""How commands print, on either stream: what a terminal would obey in data is shown instead."""

from __future__ import annotations

import typer

from itool.visible import visible


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print to standard output, or to standard error."""
    typer.echo(visible(str(text)), err=err, nl=nl)
