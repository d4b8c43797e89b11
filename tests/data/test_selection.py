"""The hardest share of each stratum, Eq. (4) and the paper's alpha."""

from __future__ import annotations

from itool.data.selection import hardest
from itool.records import Score


def selected(scores: list[Score], fraction: float) -> set[str]:
    return {score.example_id for score in hardest(scores, fraction=fraction) if score.selected}


def test_the_highest_perplexities_of_each_stratum_are_selected() -> None:
    calls = [Score(example_id=f"c{i}", stratum="calls", perplexity=1.0 + i, response_tokens=5) for i in range(10)]
    text = [Score(example_id=f"t{i}", stratum="text", perplexity=1.0 + i / 10, response_tokens=5) for i in range(5)]
    assert selected(calls + text, 0.2) == {"c9", "c8", "t4"}


def test_where_a_pass_rate_was_measured_a_low_one_is_hard_and_the_id_breaks_ties() -> None:
    scores = [
        Score(example_id="solved", stratum="calls", perplexity=9.0, pass_rate=1.0),
        Score(example_id="failed a", stratum="calls", perplexity=1.5, pass_rate=0.0),
        Score(example_id="failed b", stratum="calls", perplexity=3.0, pass_rate=0.0),
    ]
    assert selected(scores, 0.3) == {"failed a"}
    assert selected(scores, 0.6) == {"failed a", "failed b"}


def test_every_stratum_gives_at_least_one_and_the_order_stays() -> None:
    scores = [Score(example_id=name, stratum="calls" if name < "m" else "text", perplexity=2.0) for name in ("b", "a", "z")]
    assert [score.example_id for score in hardest(scores, fraction=0.01)] == ["b", "a", "z"]
    assert selected(scores, 0.01) == {"a", "z"}
