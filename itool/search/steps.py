"""Cut a response into syntactic steps, over token ids.

A step is one decision of the model: open a call `f(`, give one argument `a=...,`, close the call, open the next one or stop; in prose, one
sentence. Where these units close is the scanner's knowledge (`itool.data.toolcall.scan`); here they become runs of token ids. A step ends
at the first token that *reaches* its boundary, so a token such as `",` that straddles one stays whole. Whatever is sampled is kept:
the steps of a sample, concatenated, are the sample.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from itool.data.toolcall import scan
from itool.records import Tool
from itool.search.reading import TokenReader

Granularity = Literal["call", "argument", "response"]
"""`response` is the control best-of-n: the whole response is one step."""

BOUNDARIES: dict[Granularity, frozenset[str]] = {
    "argument": frozenset({"name", "argument", "call", "sentence"}),
    "call": frozenset({"call", "sentence"}),
    "response": frozenset(),
}
"""The kinds of scanner boundary at which a step ends. `end` (after `]`) is none: what follows the last call is the decision to stop."""


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of a response: its token ids, its own text, and the text of the whole response up to its end."""

    ids: tuple[int, ...]
    text: str
    state_text: str


def split_steps(
    reader: TokenReader, prefix_ids: Sequence[int], sample_ids: Sequence[int], *, granularity: Granularity, tools: Sequence[Tool] = ()
) -> list[Step]:
    """The steps of `sample_ids` after `prefix_ids` (the steps before them, never cut again). An empty sample has none."""
    if not sample_ids:
        return []
    ids = (*prefix_ids, *sample_ids)
    start = len(prefix_ids)
    reading = reader.read(ids)
    kinds = BOUNDARIES[granularity]
    offsets = [boundary.offset for boundary in scan(reading.text, tools).boundaries if boundary.kind in kinds] if kinds else []
    steps = []
    for end in step_ends(reading.ends, offsets, start):
        text_start = reading.ends[start - 1] if start else 0
        text_end = reading.ends[end - 1]
        steps.append(Step(ids[start:end], reading.text[text_start:text_end], reading.text[:text_end]))
        start = end
    return steps


def step_ends(ends: Sequence[int], offsets: Sequence[int], start: int) -> list[int]:
    """Where the steps end that begin at token `start`: exclusive token indices, ascending, the last one len(ends).

    `ends[i]` counts the characters complete after token i, `offsets` are the character offsets of the boundaries, ascending. Tokens
    after the last character (end of turn) belong to the last step: stopping is no decision of its own once the list is closed.
    """
    cuts: list[int] = []
    position = start
    begun = ends[start - 1] if start else 0
    for offset in offsets:
        if offset <= begun:
            continue
        position = bisect_left(ends, offset, lo=position) + 1
        begun = ends[position - 1]
        cuts.append(position)
    if cuts and begun == ends[-1]:
        cuts.pop()
    return [*cuts, len(ends)] if start < len(ends) else []
