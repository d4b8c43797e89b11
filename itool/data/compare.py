"""Are two sets of calls the same? Order-free, by tool name, argument names and typed values; no word overlap anywhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

CallError = Literal["wrong_tool", "missing_call", "extra_call", "wrong_argument"]


class Call(Protocol):
    """What is compared: a `ToolCall` or a `ScannedCall`."""

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best order-free assignment of predicted to expected calls of the same name, and what remains of either side.

    `pairs` holds (index in predicted, index in expected). Of the arguments of pairs, `matched` have an equal one on the other side, and so
    many of both sides together, `unmatched`, have none: another value, missing, or superfluous.
    """

    pairs: tuple[tuple[int, int], ...]
    missing_calls: int
    extra_calls: int
    matched_arguments: int
    unmatched_arguments: int

    @property
    def error(self) -> CallError | None:
        """The first of the fixed phrases of `records.Prediction` that holds: which tools come before their arguments."""
        if self.missing_calls and self.extra_calls:
            return "wrong_tool"
        if self.missing_calls:
            return "missing_call"
        if self.extra_calls:
            return "extra_call"
        return "wrong_argument" if self.unmatched_arguments else None


def compare_calls(predicted: Sequence[Call], expected: Sequence[Call]) -> Comparison:
    """Assign predicted to expected calls, as many as can be, so that most arguments agree (an exact assignment, not a greedy one).

    Equal calls need no place of their own in it: where each has an equal one, that assignment alone lets all arguments agree.
    """
    pairs: list[tuple[int, int]] = []
    for name in dict.fromkeys(compose(call.name) for call in expected):
        given, wanted = _places(predicted, name), _places(expected, name)
        if len(wanted) <= len(given):
            pairs += [(p, e) for e, p in _pair_all(expected, wanted, predicted, given)]
        else:
            pairs += _pair_all(predicted, given, expected, wanted)
    matched = sum(_agreeing(predicted[p], expected[e]) for p, e in pairs)
    arguments = sum(len(predicted[p].arguments) + len(expected[e].arguments) for p, e in pairs)
    return Comparison(
        pairs=tuple(sorted(pairs)),
        missing_calls=len(expected) - len(pairs),
        extra_calls=len(predicted) - len(pairs),
        matched_arguments=matched,
        unmatched_arguments=arguments - 2 * matched,
    )


def values_equal(left: Any, right: Any) -> bool:
    """Typed equality: 1 equals 1.0 and neither "1" nor True; strings after strip, composed; lists in order; dictionaries by key."""
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right
    if isinstance(left, str) and isinstance(right, str):
        return compose(left.strip()) == compose(right.strip())
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(values_equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        left, right = _by_name(left), _by_name(right)
        return left.keys() == right.keys() and all(values_equal(left[key], right[key]) for key in left)
    return False


def compose(text: str) -> str:
    """Unicode's composed form (NFC), in which many tokenizers (Qwen's) read a text: no model of theirs can answer in another one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {compose(name): value for name, value in values.items()}


def _places(calls: Sequence[Call], name: str) -> list[int]:
    return [place for place, call in enumerate(calls) if compose(call.name) == name]


def _pair_all(few: Sequence[Call], rows: Sequence[int], many: Sequence[Call], columns: Sequence[int]) -> list[tuple[int, int]]:
    """A call of `many` for each of `few`, by their places, so that most arguments agree."""
    costs = [[-_agreeing(few[row], many[column]) for column in columns] for row in rows]
    return [(row, columns[chosen]) for row, chosen in zip(rows, assign(costs), strict=True)]


def _agreeing(one: Call, other: Call) -> int:
    """How many arguments of two calls have equal values."""
    given, wanted = _by_name(one.arguments), _by_name(other.arguments)
    return sum(1 for name in given.keys() & wanted.keys() if values_equal(given[name], wanted[name]))


def assign(costs: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row in the cheapest assignment of all rows to different columns (Hungarian method, O(rows^2 * columns)).

    Needs at least as many columns as rows.
    """
    rows, columns = len(costs), len(costs[0]) if costs else 0
    row_potential, column_potential = [0.0] * (rows + 1), [0.0] * (columns + 1)
    row_of = [0] * (columns + 1)  # row assigned to a column, counted from 1; column 0 stands for the row that is being placed
    for row in range(1, rows + 1):
        row_of[0] = row
        way, column = _shortest_path(costs, row_of, row_potential, column_potential)
        while column:
            row_of[column] = row_of[way[column]]
            column = way[column]
    result = [0] * rows
    for column in range(1, columns + 1):
        if row_of[column]:
            result[row_of[column] - 1] = column - 1
    return result


def _shortest_path(
    costs: Sequence[Sequence[float]], row_of: list[int], row_potential: list[float], column_potential: list[float]
) -> tuple[list[int], int]:
    """Grow a tree of reduced costs from column 0 until it reaches a free column; keep the potentials feasible on the way."""
    size = len(column_potential)
    slack, way, seen = [float("inf")] * size, [0] * size, [False] * size
    column = 0
    while row_of[column]:
        seen[column] = True
        row = row_of[column]
        for j in range(1, size):
            reduced = costs[row - 1][j - 1] - row_potential[row] - column_potential[j]
            if not seen[j] and reduced < slack[j]:
                slack[j], way[j] = reduced, column
        nearest = min((j for j in range(1, size) if not seen[j]), key=slack.__getitem__)
        delta = slack[nearest]
        for j in range(size):
            if seen[j]:
                row_potential[row_of[j]] += delta
                column_potential[j] -= delta
            else:
                slack[j] -= delta
        column = nearest
    return way, column
