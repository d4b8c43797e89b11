"""The figures of an evaluation against numbers by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from itool.evaluate.figures import evaluation_report, pass_at_k, pass_figures, summarise_perplexities
from itool.evaluate.intervals import wilson
from itool.records import ExamplePerplexity, PassCount, Prediction


@pytest.mark.parametrize(
    ("samples", "correct", "k", "value"), [(8, 0, 8, 0.0), (8, 1, 1, 1 / 8), (8, 1, 8, 1.0), (4, 2, 2, 5 / 6), (5, 2, 3, 0.9)]
)
def test_pass_at_k_by_hand(samples: int, correct: int, k: int, value: float) -> None:
    assert pass_at_k(samples, correct, k) == pytest.approx(value)
    draws = list(itertools.combinations(range(samples), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(any(i < correct for i in draw) for draw in draws) / len(draws))


def test_pass_at_more_than_was_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, 1, 9)


def test_pass_at_k_is_a_mean_over_examples_with_its_interval() -> None:
    counts = [PassCount(example_id=name, samples=2, correct=correct, tokens=9) for name, correct in (("a", 1), ("b", 0))]
    figures = pass_figures(counts, [2, 1])
    assert (figures["pass_at_k"], figures["pass_examples"]) == ({"1": 0.25, "2": 0.5}, 2)
    assert figures["pass_at_k_ci95"] == {"1": pytest.approx(wilson(1.5, 6)), "2": pytest.approx(wilson(1, 2))}
    assert pass_figures([], [1]) == {"pass_at_k": {}, "pass_at_k_ci95": {}, "pass_examples": 0}


def prediction(correct: bool, *, difficulty: Any, stratum: Any = "calls", error: str | None = None) -> Prediction:
    return Prediction(
        example_id="e", text="", calls=[], correct=correct, error=error, difficulty=difficulty, stratum=stratum, response_tokens=3
    )


def test_an_evaluation_by_hand() -> None:
    predictions = [
        prediction(True, difficulty="easy"),
        prediction(True, difficulty="easy", stratum="text"),
        prediction(False, difficulty="hard", error="wrong_argument"),
        prediction(False, difficulty="hard", stratum="text", error="call_instead_of_text").model_copy(update={"truncated": True}),
        prediction(False, difficulty="hard", error="wrong_argument"),
    ]
    found = evaluation_report(2, "held_out", predictions, [PassCount(example_id="e", samples=4, correct=2, tokens=9)], [2])
    assert (found.iteration, found.dataset, found.count, found.correct) == (2, "held_out", 5, 2)
    assert (found.exact_match, found.no_call) == (0.4, 0.5)
    assert found.by_difficulty == {"easy": 1.0, "hard": 0.0}
    assert {name: (group.correct, group.count) for name, group in found.groups.items()} == {
        "easy": (2, 2), "hard": (0, 3), "call": (1, 3), "no_call": (1, 2),
    }  # fmt: skip
    assert found.errors == {"wrong_argument": 2, "call_instead_of_text": 1}
    assert (found.verdicts, found.truncated) == ("11000", 1)
    assert found.ci95 == pytest.approx((0.1176, 0.7693), abs=1e-4)
    assert (found.pass_at_k, found.pass_examples) == ({"2": pytest.approx(5 / 6)}, 1)


def test_what_was_not_measured_is_no_figure() -> None:
    found = evaluation_report(0, "validation", [prediction(True, difficulty=None)], [], [1, 8])
    assert (found.by_difficulty, found.no_call, found.pass_at_k, found.pass_examples) == ({}, None, {}, 0)


def test_perplexities_are_averaged_by_their_logarithms() -> None:
    found = [ExamplePerplexity(example_id=str(p), perplexity=p, response_tokens=2) for p in (2.0, 8.0)]
    assert summarise_perplexities(found) == {"count": 2, "geometric_mean": pytest.approx(4.0)}
    assert summarise_perplexities([]) == {"count": 0, "geometric_mean": None}
