"""Comparing runs: arms, paired differences, and what must be said before a difference is believed."""

import dataclasses

import pytest

from itool.errors import InputError
from itool.evaluate.compare import arm_names, compare_runs
from itool.evaluate.intervals import unpaired_difference
from itool.evaluate.report import build_report
from itool.evaluate.report_inputs import ReportInputs
from tests.evaluate.fake_run import fake_config, fake_inputs


def result(run, method="mcts_dpo", seed=17, gain=0.03, digest="same"):
    inputs = fake_inputs(seed=seed, method=method, run=run, gain=gain)
    return build_report(dataclasses.replace(inputs, held_out_digest=digest))


@pytest.fixture(scope="module")
def two():
    return [result("search"), result("sft", "sft_continued", gain=0.0)]


def test_the_second_run_is_measured_against_the_first_example_by_example(two):
    first, second = compare_runs(two).runs
    assert first.to_first is None
    assert second.to_first.paired
    assert (first.iteration, first.updates) == (3, 3 * 40), "its own iteration included"
    assert second.to_first.difference == pytest.approx(second.exact_match - first.exact_match)
    assert second.to_first.ci95[0] < second.to_first.difference < second.to_first.ci95[1]
    assert 0.0 <= second.to_first.p_value < 0.05


def test_a_run_against_itself_shows_nothing(two):
    same = compare_runs([two[0], two[0]]).runs[1].to_first
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_runs_that_do_not_say_what_they_answered_are_compared_by_proportions(two):
    unknown = [report.model_copy(update={"held_out_digest": None}) for report in two]
    assert not compare_runs(unknown).runs[1].to_first.paired


def test_what_a_run_has_gained_is_since_its_own_warm_up(two):
    for report, row in zip(two, compare_runs(two).runs, strict=True):
        warmup = report.evaluation(0).exact_match
        assert (row.warmup, row.gain) == (warmup, pytest.approx(row.exact_match - warmup))
    assert compare_runs(two).runs[0].gain > 0.05


def test_other_held_out_examples_are_compared_by_proportions_and_it_is_said(two):
    comparison = compare_runs([two[0], result("other", seed=18, digest="other")])
    assert not comparison.runs[1].to_first.paired
    assert comparison.runs[1].to_first.p_value is None
    assert any("other held-out examples than search" in note for note in comparison.notes)


def test_newcombes_interval_matches_its_paper():
    difference, (low, high) = unpaired_difference((48, 80), (56, 70))
    assert difference == pytest.approx(0.2)
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_seeds_of_an_arm_are_grouped_with_mean_and_spread():
    gains = {"mcts_dpo": 0.03, "best_of_n": 0.0}
    runs = [result(f"{method[:3]}{seed}", method, seed, gain) for method, gain in gains.items() for seed in (1, 2, 3)]
    first, second = compare_runs(runs).arms
    assert (first.arm, first.seeds, second.arm, second.seeds) == ("mcts_dpo", [1, 2, 3], "best_of_n", [1, 2, 3])
    values = [row.exact_match for row in compare_runs(runs).runs[:3]]
    assert first.exact_match.mean == pytest.approx(sum(values) / 3)
    assert first.exact_match.sd > 0
    assert first.to_first is None
    assert second.to_first.mean == pytest.approx(second.exact_match.mean - first.exact_match.mean)
    assert second.to_first.mean < 0


def test_arms_are_told_apart_by_the_settings_that_differ():
    plain, simpo = fake_config(), fake_config(dpo={"loss": "simpo"})
    elsewhere = fake_config(run="b", seed=5, kubernetes={"namespace": "b"}, policy={"url": "http://b-vllm:8000"}, runtime={"threads": 1})
    dumped = [config.model_dump(mode="json") for config in (plain, elsewhere, simpo, fake_config(method="sft_continued"))]
    assert arm_names(dumped) == ["mcts_dpo (dpo.loss=dpo)", "mcts_dpo (dpo.loss=dpo)", "mcts_dpo (dpo.loss=simpo)", "sft_continued"]


def test_what_a_method_does_not_read_makes_no_arm():
    less, other = (
        {"search": {"best_of": 14, "confidence_weight": 0.5}, "warmup": {"checkpoint_seconds": 9.0}},
        {"select": {"by": "pass_rate"}},
    )
    configs = (fake_config(), fake_config(**less), fake_config(**other))
    names = arm_names([config.model_dump(mode="json") for config in configs])
    assert names == ["mcts_dpo (select.by=perplexity)", "mcts_dpo (select.by=perplexity)", "mcts_dpo (select.by=pass_rate)"]
    unread = {"dpo": {"beta": 0.5}, "search": {"width": 9}}
    controls = [fake_config(method="sft_continued", **more).model_dump(mode="json") for more in ({}, unread)]
    assert arm_names(controls) == ["sft_continued", "sft_continued"]


def test_an_uneven_budget_is_said(two):
    runs = compare_runs([two[0], result("short", gain=-0.1)])
    assert runs.runs[1].iteration < 3
    assert any("not an equal budget" in note for note in runs.notes)
    assert compare_runs([two[0], two[0]]).notes == ["a seed occurs more than once, so the spread is too small: mcts_dpo"]


def test_a_run_without_evaluation_cannot_be_compared(two):
    empty = build_report(ReportInputs(config=fake_config(run="empty")))
    with pytest.raises(InputError, match="run empty has no held-out evaluation"):
        compare_runs([two[0], empty])
