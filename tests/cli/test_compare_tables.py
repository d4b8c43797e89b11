"""The comparison of runs on a terminal."""

from __future__ import annotations

from itool.cli.compare_tables import comparison_text
from itool.evaluate.compare import compare_runs
from tests.evaluate.test_compare import result


def test_the_tables_show_runs_and_arms_on_80_columns() -> None:
    runs = [result(f"{method[:3]}{seed}", method, seed) for method in ("mcts_dpo", "best_of_n") for seed in (1, 2)]
    comparison = compare_runs(runs)
    text = comparison_text(comparison, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "best_of_n" in text
    assert "±" in text
    assert "…" not in text, "no figure is cut"
    for row in comparison.runs:
        assert f"{100 * row.exact_match:.1f}" in text
