"""The hardest share of each stratum, Eq. (4) and the paper's alpha."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.data.selection import hardest, next_to_score, perplexity, quotas_of
from itool.errors import NumericalError
from itool.records import Example, Message, Score, ToolCall


def test_perplexity_of_equally_likely_tokens_is_their_number() -> None:
    assert perplexity([math.log(1 / 5)] * 7) == pytest.approx(5.0)
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4.0)
    assert perplexity([0.0]) == 1.0


def test_a_response_that_the_policy_holds_to_be_impossible_keeps_its_perplexity_in_json() -> None:
    impossible = Score(example_id="a", stratum="calls", perplexity=perplexity([-1e6, -math.inf]))
    assert Score.model_validate_json(impossible.model_dump_json()) == impossible


def test_a_model_that_computes_nan_has_no_perplexity() -> None:
    with pytest.raises(NumericalError, match=r"a perplexity is NaN"):
        perplexity([-1.0, math.nan])


def chosen(scores: list[Score]) -> set[str]:
    return {score.example_id for score in scores if score.selected}


def selected(scores: list[Score], fraction: float, seed: int = 1) -> set[str]:
    return chosen(hardest(scores, quotas_of(scores, fraction), seed=seed))


def test_the_highest_perplexities_of_each_stratum_are_selected() -> None:
    calls = [Score(example_id=f"c{i}", stratum="calls", perplexity=1.0 + i) for i in range(10)]
    text = [Score(example_id=f"t{i}", stratum="text", perplexity=1.0 + i / 10) for i in range(5)]
    assert selected(calls + text, 0.2) == {"c9", "c8", "t4"}


def test_where_a_pass_rate_was_measured_a_low_one_is_hard() -> None:
    scores = [
        Score(example_id="solved", stratum="calls", perplexity=9.0, pass_rate=1.0),
        Score(example_id="failed", stratum="calls", perplexity=1.5, pass_rate=0.0),
        Score(example_id="mixed", stratum="calls", perplexity=3.0, pass_rate=0.5),
    ]
    assert selected(scores, 0.3) == {"failed"}
    assert selected(scores, 0.6) == {"failed", "mixed"}


def test_iterations_search_different_ones_of_many_that_are_equally_hard_and_a_repetition_the_same() -> None:
    unsolved = [Score(example_id=f"u{i}", stratum="calls", pass_rate=0.0) for i in range(30)]
    solved = [Score(example_id=f"s{i}", stratum="calls", pass_rate=0.25) for i in range(30)]
    first, second = (selected(solved + unsolved, 0.25, seed) for seed in (1, 2))
    assert first == selected(unsolved + solved, 0.25, 1)
    assert first != second
    assert all(name.startswith("u") for name in first | second)
    assert set.union(*(selected(solved + unsolved, 0.25, seed) for seed in range(20))) == {score.example_id for score in unsolved}


def test_every_stratum_gives_at_least_one_and_the_order_stays() -> None:
    scores = [Score(example_id=name, stratum="calls" if name < "m" else "text", perplexity=2.0) for name in ("b", "a", "z")]
    assert [score.example_id for score in hardest(scores, quotas_of(scores, 0.01), seed=1)] == ["b", "a", "z"]
    assert selected(scores, 0.01) == {"a", "z"}


def test_a_share_that_is_a_whole_number_is_not_rounded_up() -> None:
    assert 0.07 * 100 > 7, "in binary"
    assert quotas_of([example(i, text=False) for i in range(100)], 0.07) == {"calls": 7}


def example(number: int, *, text: bool) -> Example:
    calls = [] if text else [ToolCall(name="f", arguments={})]
    return Example(id=f"{'t' if text else 'c'}{number}", messages=[Message(role="user", content="q")], calls=calls)


RATES = st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0]), max_size=80)


@given(calls=RATES, text=RATES, fraction=st.sampled_from([0.05, 0.25, 0.6, 1.0]), seed=st.integers(0, 5))
def test_measuring_stops_early_and_selects_what_measuring_all_would(
    calls: list[float], text: list[float], fraction: float, seed: int
) -> None:
    rates = {f"c{i}": rate for i, rate in enumerate(calls)} | {f"t{i}": rate for i, rate in enumerate(text)}
    examples = [example(i, text=False) for i in range(len(calls))] + [example(i, text=True) for i in range(len(text))]
    quotas = quotas_of(examples, fraction)

    def measured(some: list[Example]) -> list[Score]:
        return [Score(example_id=one.id, stratum=one.stratum, pass_rate=rates[one.id]) for one in some]

    scores: list[Score] = []
    while wanted := next_to_score(examples, scores, quotas, seed=seed):
        assert not {one.id for one in wanted} & {score.example_id for score in scores}
        scores += measured(wanted)
    assert chosen(hardest(scores, quotas, seed=seed)) == chosen(hardest(measured(examples), quotas, seed=seed))


def test_no_more_is_measured_than_needed() -> None:
    examples = [example(i, text=False) for i in range(1000)]
    quotas = quotas_of(examples, 0.1)
    first = next_to_score(examples, [], quotas, seed=1)
    assert len(first) == 240  # half of them unsolved would be enough, with two standard deviations to spare
    scores = [Score(example_id=one.id, stratum="calls", pass_rate=float(i % 2)) for i, one in enumerate(first)]
    assert next_to_score(examples, scores, quotas, seed=1) == []
    solved = [score.model_copy(update={"pass_rate": 0.5}) for score in scores]
    assert len(next_to_score(examples, solved, quotas, seed=1)) == 760
