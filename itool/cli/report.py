"""`itoolctl report`: the numbers of a run on one screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from itool.cli.options import ConfigOption, Output, OutputOption, RootOption, RunArgument, SetOption, existing_config, note
from itool.cli.tables import columns, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itool.artifacts.manifest import Manifest
    from itool.config import RunConfig
    from itool.evaluate.report_schema import EvaluationReport, Report


@dataclass(frozen=True)
class FoundReport:
    """A stored report: the document as it was written, parsed, and where the page lies. `current` is False when the run has moved on."""

    text: str
    report: Report
    html: str
    current: bool


def report(
    run: RunArgument = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Print a run's results; --output json prints report.json (docs/report.schema.json)."""
    settings = existing_config(run, root, config, sets)
    found = find_report(settings)
    if not found.current:
        note(f"This is the newest stored report; run {settings.run} has changed since. `itoolctl plan` says what is missing.")
    if output is Output.json:
        typer.echo(found.text, nl=False)
        return
    typer.echo(result_text(found.report))
    typer.echo(f"report: {found.html}")


def find_report(config: RunConfig) -> FoundReport:
    """The run's report, or the newest older one. Raises InputError when it has none yet."""
    from itool.artifacts.resolve import observe, resolve_observed  # noqa: PLC0415
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.errors import InputError  # noqa: PLC0415
    from itool.evaluate.report_schema import Report  # noqa: PLC0415

    store = open_store(config.root, config.store)
    observed = observe(store, config)
    resolution = list(resolve_observed(config, observed).values())[-1]
    prefix, manifest = resolution.prefix, resolution.manifest
    if not resolution.done or prefix is None or manifest is None:
        prefix, manifest = _newest_report(config.run, observed.manifests)
    if prefix is None or manifest is None:
        raise InputError(
            f"run {config.run} has no report yet", remedy="`itoolctl status` says how far it is; `itoolctl iterate` finishes it"
        )
    text = store.read(manifest.file_key(prefix, "report.json")).decode()
    html_key = manifest.file_key(prefix, "report.html")
    html = str(store.local_path(html_key) or f"{store.root}/{html_key}")
    return FoundReport(text, Report.model_validate_json(text), html, resolution.done)


def result_text(report: Report) -> str:
    """The one-screen table: baseline and iterations, per difficulty, no-call cases, what was kept, what was dropped, time and tokens."""
    lines = [f"{report.run}: {report.method}, seed {report.seed}, exact match on held-out examples in %", ""]
    lines += [_accuracy_table(report), "", *_conclusions(report)]
    dropped = _dropped(report)
    if dropped:
        lines.append(f"dropped: {dropped}")
    seconds = sum(stage.seconds for stage in report.stages)
    startup = sum(stage.startup_seconds for stage in report.stages)
    tokens = sum(stage.tokens for stage in report.stages)
    lines.append(f"stages: {len(report.stages)} in {duration(seconds)} ({duration(startup)} of it start-up), {tokens:,} tokens computed")
    return "\n".join(lines)


def _accuracy_table(report: Report) -> str:
    held_out = [evaluation for evaluation in report.evaluations if evaluation.dataset == "held_out"]
    difficulties = list(dict.fromkeys(name for evaluation in held_out for name in evaluation.by_difficulty))
    header = ["", "all", "95 % interval", *difficulties, "no call", "validation", "examples", "pairs", "updates", ""]
    rows = [_accuracy_row(report, evaluation, difficulties) for evaluation in held_out]
    return columns(header, rows, right=header[1:-1])


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
    counts: dict[str, int] = {}
    for stage in report.stages:
        for reason, count in stage.dropped.items():
            counts[f"{stage.name} {reason}"] = counts.get(f"{stage.name} {reason}", 0) + count
    most = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(most) - 6} more reasons" if len(most) > 6 else ""
    return ", ".join(f"{count} {reason}" for reason, count in most[:6]) + more


def _newest_report(run: str, manifests: Mapping[str, Manifest]) -> tuple[str | None, Manifest | None]:
    own = [(prefix, found) for prefix, found in manifests.items() if found.stage == "report" and prefix.startswith(f"{run}/")]
    return max(own, key=lambda item: item[1].ended) if own else (None, None)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
