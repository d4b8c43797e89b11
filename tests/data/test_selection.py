"""The hardest share of each stratum, Eq. (4) and the paper's alpha."""

from __future__ import annotations

from itool.data.selection import hardest
from itool.records import Score


def selected(scores: list[Score], fraction: float, seed: int = 1) -> set[str]:
    return {score.example_id for score in hardest(scores, fraction=fraction, seed=seed) if score.selected}


def test_the_highest_perplexities_of_each_stratum_are_selected() -> None:
    calls = [Score(example_id=f"c{i}", stratum="calls", perplexity=1.0 + i, response_tokens=5) for i in range(10)]
    text = [Score(example_id=f"t{i}", stratum="text", perplexity=1.0 + i / 10, response_tokens=5) for i in range(5)]
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
    assert [score.example_id for score in hardest(scores, fraction=0.01, seed=1)] == ["b", "a", "z"]
    assert selected(scores, 0.01) == {"a", "z"}
