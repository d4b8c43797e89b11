"""Easy, medium, hard: the warm-up's three sets, Eq. (2)-(3).

The paper names three signs of difficulty - the number of candidate tools, the string length of the toolset, the number of calls in the
answer - and not how they combine. Here: each example is ranked by each sign, the three ranks are added, and the sum is cut at the terciles.
"""

from __future__ import annotations

from collections.abc import Sequence

from itool.data.toolcall import render_value
from itool.records import DIFFICULTIES, Difficulty, Example


def assign_difficulty(examples: Sequence[Example]) -> list[Example]:
    """The same examples in the same order, each with its difficulty; the three sets differ in size by at most one.

    Depends on the set of examples, not on their order: equal values share the mean of their ranks, and equal sums are cut by example id.
    """
    signs = [measure_difficulty(example) for example in examples]
    ranks = [average_ranks([sign[column] for sign in signs]) for column in range(3)]
    totals = [sum(three) for three in zip(*ranks, strict=True)]
    order = sorted(range(len(examples)), key=lambda index: (totals[index], examples[index].id))
    level: dict[int, Difficulty] = {index: DIFFICULTIES[place * 3 // len(examples)] for place, index in enumerate(order)}
    return [example.model_copy(update={"difficulty": level[index]}) for index, example in enumerate(examples)]


def measure_difficulty(example: Example) -> tuple[int, int, int]:
    """Number of candidate tools, characters of their names, descriptions and parameters (these as compact JSON), number of calls."""
    length = sum(len(tool.name) + len(tool.description) + len(render_value(tool.parameters, compact=True)) for tool in example.tools)
    return len(example.tools), length, len(example.calls)


def average_ranks(values: Sequence[int]) -> list[float]:
    """Ranks from 1; equal values share the mean of the ranks that they occupy."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + 1 + end) / 2
        start = end
    return ranks
