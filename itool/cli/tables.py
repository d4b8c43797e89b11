"""Plain aligned columns: read well on a terminal, in a log and through grep."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from itool.visible import visible

NARROWEST_TERMINAL = 80
NARROWEST_FOLDED = 24
NARROWEST_NAMES = 12
INDENT = "    "
_COMMAND = re.compile(r"`[^`]*`")


def terminal_width() -> int | None:
    """Columns of the terminal on standard output, at least 80; None where that is none: lines then stay whole."""
    return max(shutil.get_terminal_size().columns, NARROWEST_TERMINAL) if sys.stdout.isatty() else None


def columns(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    fold: str | None = None,
    width: int | None = None,
    names: bool = False,
) -> str:
    """A table as text. Columns named in `right` are aligned to the right; None is shown as nothing.

    Where it is wider than `width`, the cells of the column `fold` go on below; with `names` they hold names, which break if they must.
    """
    cells = [list(header), *([_in_one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    if width is not None and fold in header:
        others = sum(widths) + 2 * (len(widths) - 1) - widths[header.index(fold)]
        narrowest = NARROWEST_NAMES if names else NARROWEST_FOLDED
        widths[header.index(fold)] = min(widths[header.index(fold)], max(width - others, narrowest))
    lines = []
    for row in cells:
        parts_of = textwrap.wrap if names else folded
        stacks = [parts_of(cell, room) if name == fold else [cell] for cell, room, name in zip(row, widths, header, strict=True)]
        for parts in zip_longest(*stacks, fillvalue=""):
            aligned = [
                part.rjust(room) if name in right else part.ljust(room) for part, room, name in zip(parts, widths, header, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _in_one_line(cell: object) -> str:
    """A cell as it is printed: what `visible` makes longer counts to the width, and no line break in a name ends the row."""
    return "" if cell is None else visible(str(cell)).replace("\n", " ")


def columns_or_below(
    header: Sequence[str],
    rows: Sequence[Sequence[str | None]],
    *,
    right: Sequence[str],
    below: Sequence[str],
    details: Callable[[Mapping[str, str | None]], str],
    width: int | None,
) -> str:
    """One line per row, the last column folded; where that is too wide, the columns `below` stand below it, as `details` puts them."""
    whole = columns(header, rows, right=right, fold=header[-1], width=width)
    if width is None or max(map(len, whole.splitlines())) <= width:
        return whole
    kept = [name for name in header if name not in below]
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    shown, *lines = ([line] for line in columns(kept, [[row[name] for name in kept] for row in cells], right=right).splitlines())
    for row, line in zip(cells, lines, strict=True):
        shown += [*line, *(f"{INDENT}{part}" for part in folded(details(row), width - len(INDENT), indent="  ") if part)]
    return "\n".join(shown)


def folded(text: str, width: int | None, *, indent: str = "") -> list[str]:
    """Lines of at most `width` characters, all but the first indented. Words and `commands` stay whole, to be copied, if need be longer."""
    if width is None or len(text) <= width:
        return [text]
    words = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def duration(seconds: float) -> str:
    """`8.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
