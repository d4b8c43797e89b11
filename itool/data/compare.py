"""Are two sets of calls the same? Order-free, by tool name, argument names and typed values; no word overlap anywhere."""

from __future__ import annotations

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

    `pairs` holds (index in predicted, index in expected). Arguments are counted over pairs: `matched` have the expected value, `wrong`
    another one, `missing` were expected only, `extra` predicted only.
    """

    pairs: tuple[tuple[int, int], ...]
    missing_calls: int
    extra_calls: int
    matched_arguments: int
    wrong_arguments: int
    missing_arguments: int
    extra_arguments: int

    @property
    def error(self) -> CallError | None:
        """The first of the fixed phrases of `records.Prediction` that holds: which tools come before their arguments."""
        if self.missing_calls and self.extra_calls:
            return "wrong_tool"
        if self.missing_calls:
            return "missing_call"
        if self.extra_calls:
            return "extra_call"
        return "wrong_argument" if self.wrong_arguments or self.missing_arguments or self.extra_arguments else None


def compare_calls(predicted: Sequence[Call], expected: Sequence[Call]) -> Comparison:
    """Assign predicted to expected calls: equal ones first, then so that most arguments agree (an exact assignment, not a greedy one).

    What assignments of equal agreement differ in, an argument being wrong in one and superfluous in the other, O(s) does not see.
    """
    pairs = _pair_equal(predicted, expected)
    if len(pairs) < min(len(predicted), len(expected)):
        pairs += _pair_similar(predicted, expected, pairs)
    matched = wrong = missing = extra = 0
    for p, e in pairs:
        got, wanted = predicted[p].arguments, expected[e].arguments
        shared = got.keys() & wanted.keys()
        agree = sum(1 for key in shared if values_equal(got[key], wanted[key]))
        matched += agree
        wrong += len(shared) - agree
        missing += len(wanted) - len(shared)
        extra += len(got) - len(shared)
    return Comparison(
        pairs=tuple(sorted(pairs)),
        missing_calls=len(expected) - len(pairs),
        extra_calls=len(predicted) - len(pairs),
        matched_arguments=matched,
        wrong_arguments=wrong,
        missing_arguments=missing,
        extra_arguments=extra,
    )


def values_equal(left: Any, right: Any) -> bool:
    """Typed equality: 1 equals 1.0 and neither "1" nor True; strings after strip; lists in order; dictionaries by key."""
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right
    if isinstance(left, str) and isinstance(right, str):
        return left.strip() == right.strip()
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(values_equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(values_equal(left[key], right[key]) for key in left)
    return False


def _calls_equal(left: Call, right: Call) -> bool:
    return left.name == right.name and values_equal(left.arguments, right.arguments)


def _pair_equal(predicted: Sequence[Call], expected: Sequence[Call]) -> list[tuple[int, int]]:
    """Equality is transitive, so taking the first free equal call never costs a pair."""
    pairs = []
    free = list(range(len(expected)))
    for p, call in enumerate(predicted):
        match = next((e for e in free if _calls_equal(call, expected[e])), None)
        if match is not None:
            pairs.append((p, match))
            free.remove(match)
    return pairs


def _pair_similar(predicted: Sequence[Call], expected: Sequence[Call], taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of the calls that have no equal partner: each name by itself, as many as possible, most agreeing arguments."""
    used_predicted, used_expected = {p for p, _ in taken}, {e for _, e in taken}
    pairs = []
    for name in dict.fromkeys(call.name for call in expected):
        rows = [e for e, call in enumerate(expected) if call.name == name and e not in used_expected]
        columns = [p for p, call in enumerate(predicted) if call.name == name and p not in used_predicted]
        if len(rows) <= len(columns):
            costs = [[_cost(predicted[p], expected[e]) for p in columns] for e in rows]
            pairs += [(columns[column], rows[row]) for row, column in enumerate(assign(costs))]
        else:
            costs = [[_cost(predicted[p], expected[e]) for e in rows] for p in columns]
            pairs += [(columns[row], rows[column]) for row, column in enumerate(assign(costs))]
    return pairs


def _cost(predicted: Call, expected: Call) -> int:
    """Of pairing two calls of one tool: less by each argument that agrees. As many are paired as can be, so nothing else weighs."""
    got, wanted = predicted.arguments, expected.arguments
    return -sum(1 for key in got.keys() & wanted.keys() if values_equal(got[key], wanted[key]))


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
