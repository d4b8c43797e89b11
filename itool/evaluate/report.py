"""From records to the report object: every table and curve of a run, recomputed from what the stages stored. Pure.

It knows no storage and no clock (`report_inputs.load_inputs` reads, `report_html.render_html` draws) and works on a run that is not
finished: what is missing is left out.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from itool.artifacts.manifest import Manifest
from itool.config import RunConfig
from itool.evaluate.figures import evaluation_report, pass_figures, summarise_perplexities
from itool.evaluate.intervals import latest_of_the_best, paired_difference
from itool.evaluate.report_inputs import ReportInputs
from itool.evaluate.report_schema import (
    AdapterPerplexity,
    EvaluationReport,
    Gain,
    Histogram,
    IterationReport,
    PairReport,
    PerplexityReport,
    Report,
    StageReport,
    TrainingCurve,
)
from itool.names import SFT_CONTROLS
from itool.records import PreferencePair, Score

CURVE_POINTS = 200
"""Most points of a training curve in the report: more than a screen shows, and small."""
HISTOGRAM_BINS = 24


def build_report(inputs: ReportInputs) -> Report:
    """The whole report of a run."""
    config = inputs.config
    evaluations = [
        evaluation_report(*key, predictions, inputs.pass_counts.get(key, []), config.evaluate.pass_k)
        for key, predictions in sorted(inputs.predictions.items())
        if predictions
    ]
    best, best_by = choose_best(evaluations)
    return Report(
        run=config.run,
        method=config.method,
        seed=config.seed,
        config_digest=config_digest(config),
        config=config.model_dump(mode="json"),
        held_out_digest=inputs.held_out_digest,
        stages=[_stage_report(manifest) for manifest in inputs.stages],
        evaluations=evaluations,
        iterations=_iteration_reports(inputs),
        best_iteration=best,
        best_by=best_by,
        gain=_gain(inputs, best),
        perplexities=_adapter_perplexities(inputs),
        training=[training_curve(k, stage, rows) for (k, stage), rows in sorted(inputs.training.items()) if rows],
    )


def config_digest(config: RunConfig) -> str:
    """16 hex digits over the whole configuration."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


def choose_best(evaluations: Iterable[EvaluationReport]) -> tuple[int | None, Literal["validation", "last"]]:
    """The iteration to keep: by `latest_of_the_best` on `validation`, never by the set that is reported.

    Without a validation set the last iteration stands, and the second value says so.
    """
    made = list(evaluations)
    validated = [e for e in made if e.dataset == "validation"]
    if validated:
        return latest_of_the_best({e.iteration: e.exact_match for e in validated}, validated[0].count), "validation"
    return max((e.iteration for e in made), default=None), "last"


def training_curve(iteration: int, stage: str, rows: Sequence[Mapping[str, Any]]) -> TrainingCurve:
    """The numeric columns of a training log, at most CURVE_POINTS of its updates, first and last included."""
    step = max(1, math.ceil(len(rows) / CURVE_POINTS))
    kept = [row for index, row in enumerate(rows) if index % step == 0 or index == len(rows) - 1]
    names = list(dict.fromkeys(name for row in kept for name, value in row.items() if name != "update" and _is_number(value)))
    return TrainingCurve(
        iteration=iteration,
        stage=stage,
        updates=[int(row.get("update", index * step + 1)) for index, row in enumerate(kept)],
        series={name: [_finite(row.get(name)) for row in kept] for name in names},
    )


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Count values between edges; the first bin takes what lies below, the last what lies above."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect.bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return Histogram(edges=list(edges), counts=counts)


def perplexity_edges(perplexities: Iterable[float]) -> list[float]:
    """Bin edges that all iterations share: even in log perplexity, from 1 to the 99.5th percentile of them all."""
    values = sorted(perplexities)
    top = max(values[min(len(values) - 1, int(0.995 * len(values)))], 1.05) if values else 2.0
    return [round(math.exp(math.log(top) * i / HISTOGRAM_BINS), 6) for i in range(HISTOGRAM_BINS + 1)]


def _stage_report(manifest: Manifest) -> StageReport:
    return StageReport(
        name=manifest.stage,
        iteration=manifest.iteration,
        seconds=manifest.seconds,
        startup_seconds=manifest.startup_seconds,
        tokens=manifest.tokens,
        **dict(manifest.counts),
        peak_memory_bytes=manifest.peak_memory_bytes,
    )


def _iteration_reports(inputs: ReportInputs) -> list[IterationReport]:
    iterations = {manifest.iteration for manifest in inputs.stages if manifest.iteration > 0}
    perplexity = perplexity_edges(score.perplexity for part in inputs.scores.values() for score in part if score.perplexity is not None)
    gaps = _gap_edges(inputs.pairs.values())
    return [_iteration_report(inputs, k, perplexity, gaps) for k in sorted(iterations)]


def _iteration_report(inputs: ReportInputs, k: int, perplexity: list[float], gaps: list[float]) -> IterationReport:
    scores, trees, pairs = inputs.scores.get(k, []), inputs.trees.get(k, []), inputs.pairs.get(k, [])
    generate = inputs.stage("generate", k)
    samples = sum(tree.samples for tree in trees)
    return IterationReport(
        iteration=k,
        scored=len(scores),
        selected=sum(score.selected for score in scores),
        trees=len(trees),
        pairs=len(pairs),
        injected_fraction=sum(pair.injected for pair in pairs) / len(pairs) if pairs else None,
        **pass_figures(inputs.pass_counts.get((k, "held_out"), []), inputs.config.evaluate.pass_k),
        pass_rate=sum(tree.correct_samples for tree in trees) / samples if samples else None,
        sampled_tokens=sum(score.sampled_tokens for score in scores) + sum(tree.sampled_tokens for tree in trees),
        simulations=sum(tree.simulations for tree in trees),
        updates=len(inputs.training.get((k, "dpo"), [])),
        stopped=_counted(tree.stopped for tree in trees),
        perplexity=_perplexity_report(scores, perplexity),
        pair_statistics=_pair_report(pairs, generate, gaps) if generate and inputs.config.method not in SFT_CONTROLS else None,
    )


def _adapter_perplexities(inputs: ReportInputs) -> list[AdapterPerplexity]:
    known = {k: sorted(one.perplexity for one in some) for k, some in sorted(inputs.perplexities.items())}
    edges = perplexity_edges(value for values in known.values() for value in values)
    return [
        AdapterPerplexity(
            iteration=k,
            **summarise_perplexities(inputs.perplexities[k]),
            median=statistics.median(values),
            p90=p90(values),
            histogram=histogram(values, edges),
        )
        for k, values in known.items()
        if values
    ]


def _perplexity_report(scores: Sequence[Score], edges: list[float]) -> PerplexityReport | None:
    values = sorted(score.perplexity for score in scores if score.perplexity is not None)
    if not values:
        return None  # scored by pass rate alone: without ground-truth text, or behind vLLM
    return PerplexityReport(
        count=len(values),
        mean=statistics.fmean(values),
        median=statistics.median(values),
        p90=p90(values),
        histogram=histogram(values, edges),
        selected=histogram([s.perplexity for s in scores if s.selected and s.perplexity is not None], edges),
    )


def _pair_report(pairs: Sequence[PreferencePair], generate: Manifest, edges: list[float]) -> PairReport:
    gaps = _gaps(pairs)
    return PairReport(
        count=len(pairs),
        injected=sum(pair.injected for pair in pairs),
        mean_gap=_mean(gaps),
        mean_chosen_visits=_mean([pair.chosen_visits for pair in pairs]),
        mean_rejected_visits=_mean([pair.rejected_visits for pair in pairs]),
        gap=histogram(gaps, edges),
        dropped={str(reason): int(count) for reason, count in (generate.metrics.get("pairs_dropped") or {}).items()},
    )


def _gaps(pairs: Sequence[PreferencePair]) -> list[float]:
    """Q(chosen) - Q(rejected), without the last bits of its sums: equal gaps share a bin."""
    return [round(pair.chosen_value - pair.rejected_value, 9) for pair in pairs]


def _gap_edges(pairs: Iterable[Sequence[PreferencePair]]) -> list[float]:
    top = max((gap for part in pairs for gap in _gaps(part)), default=1.0)
    ceiling = max(1.0, math.ceil(top * 5) / 5)
    return [round(ceiling * i / 20, 6) for i in range(21)]


def _gain(inputs: ReportInputs, best: int | None) -> Gain | None:
    """Best iteration against the warm-up on the examples that both answered."""
    if not best:
        return None
    before, after = ({p.example_id: p.correct for p in inputs.predictions.get((k, "held_out"), [])} for k in (0, best))
    shared = [example for example in before if example in after]
    if not shared:
        return None
    return Gain(iteration=best, **vars(paired_difference([before[e] for e in shared], [after[e] for e in shared])))


def p90(ascending: Sequence[float]) -> float:
    """The least value that nine tenths of them do not exceed."""
    return ascending[(9 * len(ascending) + 9) // 10 - 1]


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    return round(float(value), 6) if _is_number(value) and math.isfinite(value) else None
