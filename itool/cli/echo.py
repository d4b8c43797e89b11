"""What commands print, on either stream. Data may hold what a terminal obeys: it is shown, and nothing happens.

Names, values and messages come from data sets, models, pods and stores. Printed as they are, an escape sequence among them could clear the
screen, set the clipboard or write over the line above, and a bidirectional override could show a name backwards. Every such character is
printed as `\\uXXXX`, which is also how JSON writes it: a document for scripts keeps its meaning.
"""

from __future__ import annotations

import re

import typer

# Controls but tab and line feed, bidirectional overrides and isolates, and halves of surrogate pairs, which no stream takes.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text without what a terminal would obey."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print to standard output, or to standard error."""
    typer.echo(visible(str(text)), err=err, nl=nl)
