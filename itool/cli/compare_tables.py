"""Runs side by side as tables for a terminal of 80 columns: accuracies, differences, and the arms when one has several seeds."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from itool.evaluate.compare import Comparison, SeedSpread
from itool.evaluate.intervals import Interval
from itool.records import DIFFICULTIES

WHOLE = 1000
"""Columns that no table fills."""


def comparison_text(comparison: Comparison, width: int | None = None) -> str:
    """Tables and notes, in lines of at most `width` characters, of which they need 80."""
    text = io.StringIO()
    console = Console(file=text, width=width or WHOLE, markup=False, emoji=False, highlight=False)
    for table in _tables(comparison):
        console.print(table)
    for note in comparison.notes:
        console.print(f"Note: {note}.")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _tables(comparison: Comparison) -> list[Table]:
    tables = [_accuracy_table(comparison), _difference_table(comparison)]
    if any(len(arm.seeds) > 1 for arm in comparison.arms):
        tables += [_arm_accuracy_table(comparison), _arm_difference_table(comparison)]
    return tables


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table whose name columns fold and whose figures never do."""
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.min_width = min(len(title), 80)  # else the title would be folded
    for name in names:
        table.add_column(name, overflow="fold", min_width=8)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _accuracy_table(comparison: Comparison) -> Table:
    title = "Held-out exact match in %, kept iteration, 95 % interval"
    table = _table(title, ("Run", "Arm"), ("Seed", "It.", "Exact", "", *(d.title() for d in DIFFICULTIES), "No call"))
    for row in comparison.runs:
        groups = (_percent(row.by_difficulty.get(name)) for name in DIFFICULTIES)
        head = (row.run, row.arm, str(row.seed), str(row.iteration))
        table.add_row(*head, _percent(row.exact_match), _interval(row.ci95), *groups, _percent(row.no_call))
    return table


def _difference_table(comparison: Comparison) -> Table:
    title = f"Points over the own warm-up (gain) and over {comparison.runs[0].run}"
    table = _table(title, ("Run",), ("Warm-up", "Gain", "To first", "", "p", "Tokens", "Updates"))
    for row in comparison.runs:
        to = row.to_first
        versus = (_points(to.difference), _interval(to.ci95, signed=True), _chance(to.p_value)) if to else ("", "", "")
        table.add_row(row.run, _percent(row.warmup), _points(row.gain), *versus, f"{row.sampled_tokens:,}", str(row.updates))
    return table


def _arm_accuracy_table(comparison: Comparison) -> Table:
    title = "Arms in %, mean over seeds ± standard deviation"
    table = _table(title, ("Arm",), ("Seeds", "Exact", *(d.title() for d in DIFFICULTIES), "No call"))
    for arm in comparison.arms:
        groups = (_mean(arm.by_difficulty.get(name)) for name in DIFFICULTIES)
        table.add_row(arm.arm, str(len(arm.seeds)), _mean(arm.exact_match), *groups, _mean(arm.no_call))
    return table


def _arm_difference_table(comparison: Comparison) -> Table:
    title = "Arms in points, mean over seeds ± standard deviation, 95 % t interval"
    table = _table(title, ("Arm",), ("Warm-up", "Gain", "", "To first", ""))
    for arm in comparison.arms:
        intervals = [_interval(value.ci95, signed=True) if value and value.ci95 else "" for value in (arm.gain, arm.to_first)]
        gain, to_first = _mean(arm.gain, signed=True), _mean(arm.to_first, signed=True)
        table.add_row(arm.arm, _mean(arm.warmup), gain, intervals[0], to_first, intervals[1])
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def _chance(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _interval(value: Interval, *, signed: bool = False) -> str:
    low, high = (_points(end) if signed else _percent(end) for end in value)
    return f"[{low}, {high}]"


def _mean(value: SeedSpread | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    mean = _points(value.mean) if signed else _percent(value.mean)
    return mean if value.sd is None else f"{mean} ± {100 * value.sd:.1f}"
