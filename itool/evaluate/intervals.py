"""Uncertainty of accuracies: one proportion, a mean over examples, a paired difference, a mean over seeds. Pure, no numpy.

All intervals are 95 %. What they do not know: examples of one generator are not independent draws of the world, and the seeds of an arm
are few, so a mean over seeds carries a t interval and its spread.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
Interval = tuple[float, float]

_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1..30 degrees of freedom; beyond, the normal quantile is 4 % narrower at most."""


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of B minus accuracy of A on the same examples. `wins`: only B is right; `losses`: only A is right."""

    count: int
    difference: float
    ci95: Interval
    wins: int
    losses: int
    p_value: float


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, sample standard deviation and t interval (both None for one seed)."""

    count: int
    mean: float
    sd: float | None
    ci95: Interval | None


def wilson(correct: float, count: float) -> Interval:
    """Wilson score interval of a proportion; (0, 1) when nothing was measured."""
    if count == 0:
        return 0.0, 1.0
    share, z = correct / count, Z95
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(shares: Sequence[float]) -> Interval:
    """Interval of a mean of shares, one per example: Wilson's, over as many examples as would give a proportion the same standard error.

    That number is n m (1 - m) / variance: n itself where each share is 0 or 1, and taken as n where all are equal.
    """
    if not shares:
        return wilson(0, 0)
    mean, variance = statistics.fmean(shares), statistics.pvariance(shares)
    count = len(shares) * mean * (1 - mean) / variance if variance else len(shares)
    return wilson(mean * count, count)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """Second minus first, example by example: Agresti-Min interval (half an example added per cell) and the exact McNemar p-value.

    Raises ValueError when the sequences differ in length: they would not be the same examples.
    """
    wins = sum(1 for a, b in zip(first, second, strict=True) if b and not a)
    losses = sum(1 for a, b in zip(first, second, strict=True) if a and not b)
    count = len(first)
    if count == 0:
        return PairedDifference(0, 0.0, (-1.0, 1.0), 0, 0, 1.0)
    padded, more, fewer = count + 2, wins + 0.5, losses + 0.5
    centre = (more - fewer) / padded
    half = Z95 * math.sqrt(more + fewer - (more - fewer) ** 2 / padded) / padded
    interval = (max(-1.0, centre - half), min(1.0, centre + half))
    return PairedDifference(count, (wins - losses) / count, interval, wins, losses, mcnemar(wins, losses))


def unpaired_difference(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, Interval]:
    """Second minus first accuracy, each (correct, count) on its own examples, with Newcombe's hybrid score interval."""
    (a, n), (b, m) = first, second
    if n == 0 or m == 0:
        return 0.0, (-1.0, 1.0)
    p, q = a / n, b / m
    (p_low, p_high), (q_low, q_high) = wilson(a, n), wilson(b, m)
    return q - p, (q - p - math.hypot(q - q_low, p_high - p), q - p + math.hypot(q_high - q, p - p_low))


def latest_of_the_best(accuracies: Mapping[int, float], count: int) -> int:
    """The latest iteration whose accuracy lies at most one standard error below the best one's (the one-standard-error rule, Breiman 1984).

    `accuracies` by iteration are those on the same `count` examples. Some hundreds tell a collapse from progress, not one iteration
    from the next: the plain maximum would be drawn by chance, and later iterations are better as a rule.
    """
    best = max(accuracies.values())
    least = best - math.sqrt(best * (1 - best) / max(count, 1))
    return max(iteration for iteration, share in accuracies.items() if share >= least)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided McNemar p-value: the chance of so uneven a split of the discordant examples if both policies were equal."""
    total = wins + losses
    if total == 0:
        return 1.0
    tail = sum(math.exp(_log_binomial(total, k) - total * math.log(2)) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail)


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and t interval over the seeds of an arm. Raises ValueError for no value."""
    if not values:
        raise ValueError("spread of no value")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Spread(1, mean, None, None)
    sd = statistics.stdev(values)
    quantile = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else Z95
    half = quantile * sd / math.sqrt(len(values))
    return Spread(len(values), mean, sd, (mean - half, mean + half))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
