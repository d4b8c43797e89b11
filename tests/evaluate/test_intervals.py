"""Intervals against values worked out by hand or printed in the literature."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.evaluate.intervals import mcnemar, mean_interval, paired_difference, spread, wilson


def test_wilson_matches_a_worked_example():
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_of_nothing_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_a_probability(count, data):
    correct = data.draw(st.integers(0, count))
    low, high = wilson(correct, count)
    assert 0.0 <= low <= correct / count + 1e-12
    assert correct / count - 1e-12 <= high <= 1.0


def test_a_mean_of_examples_that_are_solved_or_not_is_a_proportion():
    assert mean_interval([1.0] * 8 + [0.0] * 2) == pytest.approx(wilson(8, 10))
    assert mean_interval([]) == (0.0, 1.0)


def test_a_mean_of_examples_that_differ_less_is_known_better():
    """16 examples at 1/4 or 3/4: variance 1/16 where a proportion of one half has 1/4, hence the interval of 64 examples."""
    assert mean_interval([0.25, 0.75] * 8) == pytest.approx(wilson(32, 64))


@pytest.mark.parametrize("share", [0.0, 0.125, 1.0])
def test_equal_examples_leave_their_mean_uncertain(share):
    assert mean_interval([share] * 20) == pytest.approx(wilson(20 * share, 20))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60))
def test_the_interval_of_a_mean_holds_it_and_stays_a_probability(solved):
    low, high = mean_interval([correct / 8 for correct in solved])
    assert 0.0 <= low <= sum(solved) / 8 / len(solved) + 1e-12
    assert sum(solved) / 8 / len(solved) - 1e-12 <= high <= 1.0


def test_mcnemar_is_the_two_sided_binomial_tail():
    assert mcnemar(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(600, 400) == pytest.approx(mcnemar(400, 600))


def test_paired_difference_counts_only_what_changed():
    first = [True] * 50 + [False] * 50
    second = [True] * 45 + [False] * 5 + [True] * 15 + [False] * 35
    paired = paired_difference(first, second)
    assert (paired.wins, paired.losses, paired.count) == (15, 5, 100)
    assert paired.difference == pytest.approx(0.10)
    half = 1.96 * math.sqrt(15.5 + 5.5 - 100 / 102) / 102
    assert paired.ci95 == pytest.approx((10 / 102 - half, 10 / 102 + half), abs=1e-4)


def test_paired_difference_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([True], [True, False])


def test_spread_over_three_seeds_uses_students_t():
    result = spread([0.1, 0.2, 0.3])
    assert (result.mean, result.sd) == (pytest.approx(0.2), pytest.approx(0.1))
    assert result.ci95 == pytest.approx((0.2 - 4.303 * 0.1 / math.sqrt(3), 0.2 + 4.303 * 0.1 / math.sqrt(3)))


def share_within(quantile, degrees, steps=2000):
    """The mass of Student's t between -quantile and quantile, by Simpson's rule."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    heights = [(1 + (quantile * i / steps) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps + 1)]
    return 2 * scale * quantile / steps / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))


@pytest.mark.parametrize("degrees", range(1, 31))
def test_a_spread_holds_95_percent_of_students_t(degrees):
    result = spread([0.0, 1.0] * ((degrees + 1) // 2) + [0.5] * ((degrees + 1) % 2))
    assert result.ci95 is not None
    quantile = (result.ci95[1] - result.mean) * math.sqrt(result.count) / result.sd
    assert share_within(quantile, degrees) == pytest.approx(0.95, abs=1e-4)


def test_spread_of_one_seed_has_no_interval():
    assert spread([0.4]).sd is None
    assert spread([0.4]).ci95 is None
