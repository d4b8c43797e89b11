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


def test_without_a_width_every_run_is_one_line_under_a_title_of_one_line() -> None:
    runs = [result("a-run-with-a-name-that-folds-on-a-terminal", "best_of_n", 1), result("a-short-one", "mcts_dpo", 1)]
    lines = comparison_text(compare_runs(runs)).splitlines()
    assert sum(runs[0].run in line for line in lines) == 3, "a row of each table, and the first run in a title"
    seeds = [result(f"m{seed}", "mcts_dpo", seed) for seed in (1, 2)]
    assert "Arms in points, mean over seeds ± standard deviation, 95 % t interval" in comparison_text(compare_runs(seeds), 80).splitlines()


def test_what_looks_like_markup_in_a_setting_is_shown_as_it_is() -> None:
    """An arm is named after the settings that tell it from others, paths among them."""
    comparison = compare_runs([result("m1", seed=1), result("m2", seed=2)])
    named = [row.model_copy(update={"arm": "mcts_dpo (data.path=[red]/x:dog:[/old])"}) for row in comparison.runs]
    text = comparison_text(comparison.model_copy(update={"runs": named}))
    assert text.count("(data.path=[red]/x:dog:[/old])") == 2
