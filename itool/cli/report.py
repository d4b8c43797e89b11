"""`itoolctl report`: the numbers of a run on one screen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from itool.cli.echo import echo
from itool.cli.options import ConfigOption, Output, OutputOption, RootOption, RunArgument, SetOption, existing_config, note
from itool.cli.tables import columns, duration, folded, terminal_width
from itool.commands import itoolctl

if TYPE_CHECKING:
    from itool.evaluate.report_schema import EvaluationReport, Report


def report(
    run: RunArgument = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Print a run's results. --output json prints report.json (docs/report.schema.json)."""
    from itool.operations.reports import find_report  # noqa: PLC0415

    settings = existing_config(run, root, config, sets)
    found = find_report(settings)
    if not found.current:
        plan = itoolctl(f"plan --run {settings.run}", settings.root)
        note(f"This is the newest stored report; run {settings.run} has changed since. {plan} says what is missing.")
    if output is Output.json:
        echo(found.text, nl=False)
        return
    echo(result_text(found.report, terminal_width()))
    echo(f"report: {found.html}")


def result_text(report: Report, width: int | None = None) -> str:
    """The one-screen table: baseline and iterations, per difficulty, no-call cases, what was kept, what was dropped, time and tokens.

    In lines of at most `width` characters, of which it needs 80.
    """
    lines = [f"{report.run}: {report.method}, seed {report.seed}, exact match on held-out examples in %", ""]
    lines += [_accuracy_table(report, width), ""]
    said = _conclusions(report)
    dropped = _dropped(report)
    if dropped:
        said.append(f"dropped: {dropped}")
    seconds = sum(stage.seconds for stage in report.stages)
    startup = sum(stage.startup_seconds for stage in report.stages)
    tokens = sum(stage.tokens for stage in report.stages)
    said.append(f"stages: {len(report.stages)} in {duration(seconds)} ({duration(startup)} of it start-up), {tokens:,} tokens computed")
    lines += [line for text in said for line in folded(text, width, indent="  ")]
    return "\n".join(lines)


def _accuracy_table(report: Report, width: int | None) -> str:
    """One table, or where it is too wide two: the groups of examples in the second."""
    held_out = [evaluation for evaluation in report.evaluations if evaluation.dataset == "held_out"]
    difficulties = list(dict.fromkeys(name for evaluation in held_out for name in evaluation.by_difficulty))
    groups = [*difficulties, "no call"]
    header = ["", "all", "95 % interval", *groups, "validation", "examples", "pairs", "updates", " "]
    rows = [_accuracy_row(report, evaluation, difficulties) for evaluation in held_out]
    whole = columns(header, rows, right=header[1:-1])
    if width is None or max(map(len, whole.splitlines())) <= width:
        return whole
    parts = ([name for name in header if name not in groups], ["", *groups])
    tables = (columns(part, [[row[header.index(name)] for name in part] for row in rows], right=part[1:]) for part in parts)
    return "\n\n".join(tables)


def _accuracy_row(report: Report, evaluation: EvaluationReport, difficulties: list[str]) -> list[object]:
    k = evaluation.iteration
    validation = report.evaluation(k, "validation")
    iteration = next((found for found in report.iterations if found.iteration == k), None)
    return [
        "warm-up" if k == 0 else f"iteration {k}",
        _percent(evaluation.exact_match),
        f"{100 * evaluation.ci95[0]:.1f}-{100 * evaluation.ci95[1]:.1f}",
        *(_percent(evaluation.by_difficulty.get(name)) for name in difficulties),
        _percent(evaluation.no_call),
        _percent(validation.exact_match if validation else None),
        evaluation.count,
        iteration.pairs if iteration else None,
        iteration.updates if iteration else None,
        "<- kept" if k == report.best_iteration else None,
    ]


def _conclusions(report: Report) -> list[str]:
    lines = []
    if report.best_iteration is not None:
        name = f"iteration {report.best_iteration}" if report.best_iteration else "the warm-up"
        validated = "the latest within a standard error of the best on the validation set"
        by = validated if report.best_by == "validation" else "the last one; there is no validation set"
        lines.append(f"kept: {name} ({by})")
    if report.gain is not None:
        gain = report.gain
        low, high = (100 * bound for bound in gain.ci95)
        lines.append(f"gain over warm-up: {100 * gain.difference:+.1f} points [{low:+.1f}, {high:+.1f}], McNemar p = {gain.p_value:.3g}")
    return lines


def _dropped(report: Report) -> str:
    counts: Counter[str] = Counter()
    for stage in report.stages:
        for reason, count in stage.dropped.items():
            counts[f"{stage.name} {reason}"] += count
    more = f" and {len(counts) - 6} more reasons" if len(counts) > 6 else ""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common(6)) + more


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
