"""The figures of one evaluation from its records: accuracy by group, pass@k, perplexity. Pure.

`metrics.json` of the stage `evaluate` and `report.json` hold what these functions return. What they do not know: whether the examples are a
fair sample of anything; the intervals are about their number alone.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from itool.evaluate.intervals import mean_interval, wilson
from itool.evaluate.report_schema import EvaluationReport, Group
from itool.records import DIFFICULTIES, ExamplePerplexity, PassCount, Prediction


def evaluation_report(
    iteration: int, dataset: str, predictions: Sequence[Prediction], counts: Sequence[PassCount], ks: Iterable[int]
) -> EvaluationReport:
    """How one adapter answers one dataset: accuracy over `predictions`, at least one, and pass@k over `counts`, none where not sampled."""
    members: dict[str, list[Prediction]] = {name: [p for p in predictions if p.difficulty == name] for name in DIFFICULTIES}
    members["call"] = [p for p in predictions if p.stratum == "calls"]
    members["no_call"] = [p for p in predictions if p.stratum == "text"]
    groups = {name: _group(some) for name, some in members.items() if some}
    return EvaluationReport(
        iteration=iteration,
        dataset=cast(Literal["held_out", "validation"], dataset),
        **dict(_group(predictions)),
        by_difficulty={name: groups[name].exact_match for name in DIFFICULTIES if name in groups},
        no_call=groups["no_call"].exact_match if "no_call" in groups else None,
        groups=groups,
        errors=dict(Counter(p.error or "unknown" for p in predictions if not p.correct).most_common()),
        truncated=sum(p.truncated for p in predictions),
        verdicts="".join("1" if p.correct else "0" for p in predictions),
        **pass_figures(counts, ks),
    )


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k draws is right: 1 - C(n-c, k) / C(n, k). Chen et al. 2021, arXiv 2107.03374, Eq. (1).

    Raises ValueError when fewer than k samples were drawn: no unbiased estimate exists.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} right in {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_figures(counts: Sequence[PassCount], ks: Iterable[int]) -> dict[str, Any]:
    """pass@k averaged over examples and its interval, by k as JSON has it (a string), and of how many examples; no k when of none."""
    by_k = {str(k): [pass_at_k(c.samples, c.correct, k) for c in counts] for k in sorted(set(ks)) if counts}
    return {
        "pass_at_k": {k: statistics.fmean(shares) for k, shares in by_k.items()},
        "pass_at_k_ci95": {k: mean_interval(shares) for k, shares in by_k.items()},
        "pass_examples": len(counts),
    }


def summarise_perplexities(found: Sequence[ExamplePerplexity]) -> dict[str, Any]:
    """Figures as JSON. The mean is of the logarithms: one hopeless response would decide an arithmetic one. None of nothing."""
    mean = statistics.geometric_mean(one.perplexity for one in found) if found else None
    return {"count": len(found), "geometric_mean": mean}


def _group(predictions: Sequence[Prediction]) -> Group:
    count, correct = len(predictions), sum(p.correct for p in predictions)
    return Group(count=count, correct=correct, exact_match=correct / count, ci95=wilson(correct, count))
