"""Runs side by side: every run's accuracy with its interval, its difference to the first run, and arms with several seeds. Pure.

An *arm* is all runs whose configurations differ at most in the seed, among the settings that a stage's result depends on. Two runs on the
same held-out examples are compared example by example (McNemar), else by their two proportions (Newcombe), and the table says which. A run
is measured at the iteration that its validation set chose.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from itool.errors import InputError
from itool.evaluate.intervals import Interval, paired_difference, spread, unpaired_difference
from itool.evaluate.report_schema import EvaluationReport, Part, Report
from itool.records import DIFFICULTIES
from itool.stages import flatten, settings_read, stage_names


class Difference(Part):
    """Accuracy minus the first run's. `p_value` (exact McNemar) only where the examples are the same (`paired`)."""

    difference: float
    ci95: Interval
    paired: bool
    count: int
    p_value: float | None


class RunRow(Part):
    """One run. `ci95` is a Wilson interval; `gain` is measured minus warm-up, on the same examples.

    `sampled_tokens` and `updates` are those of the iterations up to the measured one.
    """

    run: str
    arm: str
    method: str
    seed: int
    iteration: int
    count: int
    exact_match: float
    ci95: Interval
    warmup: float | None
    gain: float | None
    by_difficulty: dict[str, float]
    no_call: float | None
    sampled_tokens: int
    updates: int
    seconds: float
    to_first: Difference | None


class SeedSpread(Part):
    """Mean over seeds; spread (`sd`) and t interval need two of them."""

    count: int
    mean: float
    sd: float | None
    ci95: Interval | None


class ArmRow(Part):
    """All seeds of an arm. `to_first` is the mean over the seeds that both arms have."""

    arm: str
    seeds: list[int]
    exact_match: SeedSpread
    warmup: SeedSpread | None
    gain: SeedSpread | None
    by_difficulty: dict[str, SeedSpread]
    no_call: SeedSpread | None
    to_first: SeedSpread | None


class Comparison(Part):
    """The whole comparison. `notes` says what a reader must know before believing a difference."""

    runs: list[RunRow]
    arms: list[ArmRow]
    notes: list[str]


@dataclass(frozen=True)
class _Entry:
    """A run, the evaluation that it is measured by, and its arm."""

    report: Report
    measured: EvaluationReport
    arm: str


def compare_runs(reports: Sequence[Report], *, outdated: Collection[str] = ()) -> Comparison:
    """Set runs side by side; the first is what the others are measured against. `outdated` names runs that have changed since their report.

    Needs at least one. Raises InputError for a run without a held-out evaluation.
    """
    arms = arm_names([report.config for report in reports])
    entries = [_Entry(report, _evaluation(report), arm) for report, arm in zip(reports, arms, strict=True)]
    rows = [_run_row(entry, _difference(entries[0], entry) if index else None) for index, entry in enumerate(entries)]
    by_arm = {arm: [entry for entry in entries if entry.arm == arm] for arm in dict.fromkeys(arms)}
    first = by_arm[arms[0]]
    table = [_arm_row([row for row in rows if row.arm == arm], own, [] if own is first else first) for arm, own in by_arm.items()]
    return Comparison(runs=rows, arms=table, notes=[*_outdated(outdated), *_notes(rows, table)])


def arm_names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name per run, the same for runs of one arm: the method, and what tells it from other arms of that method."""
    flat = [_of_the_arm(flatten(config)) for config in configs]
    names = []
    for own in flat:
        rivals = [other for other in flat if other["method"] == own["method"]]
        differing = [key for key in own if any(key in other and other[key] != own[key] for other in rivals)]
        shown = ", ".join(f"{key}={own[key]}" for key in differing)
        names.append(f"{own['method']} ({shown})" if shown else str(own["method"]))
    return names


def _of_the_arm(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's result depends on; not where and by how many pods it was computed, nor what its method does not read."""
    read = {path for name in stage_names(values["method"]) for path in settings_read(values, name)} - {"run", "seed"}
    return {path: value for path, value in values.items() if path in read}


def _evaluation(report: Report) -> EvaluationReport:
    evaluation = None if report.best_iteration is None else report.evaluation(report.best_iteration)
    if evaluation is None:
        raise InputError(f"run {report.run} has no held-out evaluation to compare", remedy="Finish it with itoolctl iterate")
    return evaluation


def _run_row(entry: _Entry, to_first: Difference | None) -> RunRow:
    report, measured = entry.report, entry.measured
    warmup = report.evaluation(0)
    used = [done for done in report.iterations if done.iteration <= measured.iteration]
    return RunRow(
        run=report.run,
        arm=entry.arm,
        method=report.method,
        seed=report.seed,
        iteration=measured.iteration,
        count=measured.count,
        exact_match=measured.exact_match,
        ci95=measured.ci95,
        warmup=warmup.exact_match if warmup else None,
        gain=measured.exact_match - warmup.exact_match if warmup else None,
        by_difficulty=measured.by_difficulty,
        no_call=measured.no_call,
        sampled_tokens=sum(done.sampled_tokens for done in used),
        updates=sum(done.updates for done in used),
        seconds=sum(stage.seconds for stage in report.stages),
        to_first=to_first,
    )


def _difference(a: _Entry, b: _Entry) -> Difference:
    """B minus A: example by example where both answered the same held-out set, else from the two proportions."""
    before, after = ([digit == "1" for digit in entry.measured.verdicts] for entry in (a, b))
    known = a.report.held_out_digest is not None and a.report.held_out_digest == b.report.held_out_digest
    if known and before and len(before) == len(after):
        paired = paired_difference(before, after)
        return Difference(difference=paired.difference, ci95=paired.ci95, paired=True, count=paired.count, p_value=paired.p_value)
    value, interval = unpaired_difference((a.measured.correct, a.measured.count), (b.measured.correct, b.measured.count))
    return Difference(difference=value, ci95=interval, paired=False, count=b.measured.count, p_value=None)


def _arm_row(own: Sequence[RunRow], entries: Sequence[_Entry], first: Sequence[_Entry]) -> ArmRow:
    """One arm; `first` is the arm that it is measured against, empty for that arm itself."""
    partner = {entry.report.seed: entry for entry in first}
    differences = [_difference(partner[entry.report.seed], entry).difference for entry in entries if entry.report.seed in partner]
    values = {name: _spread([row.by_difficulty[name] for row in own if name in row.by_difficulty]) for name in DIFFICULTIES}
    return ArmRow(
        arm=own[0].arm,
        seeds=sorted(row.seed for row in own),
        exact_match=SeedSpread(**vars(spread([row.exact_match for row in own]))),
        warmup=_spread([row.warmup for row in own]),
        gain=_spread([row.gain for row in own]),
        by_difficulty={name: value for name, value in values.items() if value is not None},
        no_call=_spread([row.no_call for row in own]),
        to_first=_spread(differences),
    )


def _spread(values: Sequence[float | None]) -> SeedSpread | None:
    known = [value for value in values if value is not None]
    return SeedSpread(**vars(spread(known))) if known else None


def _notes(rows: Sequence[RunRow], arms: Sequence[ArmRow]) -> list[str]:
    notes = []
    unpaired = [row.run for row in rows if row.to_first and not row.to_first.paired]
    if unpaired:
        notes.append(f"other held-out examples than {rows[0].run}, so compared by proportions: {', '.join(unpaired)}")
    notes += _uneven(rows, "updates", lambda row: row.updates)
    notes += _uneven([row for row in rows if row.sampled_tokens], "sampled tokens", lambda row: row.sampled_tokens)
    doubled = [arm.arm for arm in arms if len(set(arm.seeds)) < len(arm.seeds)]
    if doubled:
        notes.append(f"a seed occurs more than once, so the spread is too small: {', '.join(doubled)}")
    return notes


def _outdated(runs: Collection[str]) -> list[str]:
    if not runs:
        return []
    return [f"changed since the report that is compared (`itoolctl plan` says what is missing): {', '.join(runs)}"]


def _uneven(rows: Sequence[RunRow], name: str, budget: Callable[[RunRow], int]) -> list[str]:
    values = [budget(row) for row in rows]
    if not values or max(values) <= 1.05 * min(values):
        return []
    return [f"{name} differ up to the measured iteration, from {min(values):,} to {max(values):,}: not an equal budget"]
