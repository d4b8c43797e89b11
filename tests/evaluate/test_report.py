"""The report object: what a script that reads report.json relies on."""

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import pytest

from itool.artifacts.manifest import FileEntry
from itool.errors import InputError
from itool.evaluate.intervals import wilson
from itool.evaluate.report import CURVE_POINTS, build_report, choose_best, config_digest, histogram, p90, training_curve
from itool.evaluate.report_inputs import ReportInputs, load_inputs
from itool.evaluate.report_schema import Report, schema_document
from itool.records import Score
from tests.evaluate.fake_run import BUFFER, HELD_OUT, VALIDATION, fake_config, fake_inputs

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def inputs():
    return fake_inputs()


@pytest.fixture(scope="module")
def report(inputs):
    return build_report(inputs)


def test_the_documented_schema_is_the_schema():
    assert SCHEMA.read_text(encoding="utf-8") == schema_document(), "run: python -m itool.evaluate.report_schema docs/report.schema.json"


def test_a_report_satisfies_the_documented_schema_and_reads_back(report):
    document = report.model_dump(mode="json")
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert Report.model_validate_json(json.dumps(document)) == report


def test_the_fields_that_scripts_read_are_there(report):
    document = report.model_dump(mode="json")
    assert {"run", "method", "stages", "evaluations", "iterations", "best_iteration"} <= document.keys()
    assert {"name", "iteration", "seconds", "startup_seconds", "tokens", "dropped"} <= document["stages"][0].keys()
    wanted = {"iteration", "dataset", "count", "exact_match", "ci95", "by_difficulty", "no_call"}
    assert all(wanted <= evaluation.keys() for evaluation in document["evaluations"])
    wanted = {"selected", "trees", "pairs", "injected_fraction", "pass_at_k", "sampled_tokens", "updates"}
    assert all(wanted <= iteration.keys() for iteration in document["iterations"])


def test_accuracy_is_counted_from_the_stored_predictions(report, inputs):
    warmup = report.evaluation(0)
    rows = inputs.predictions[0, "held_out"]
    assert warmup.count == HELD_OUT
    assert warmup.exact_match == pytest.approx(sum(p.correct for p in rows) / HELD_OUT)
    assert warmup.ci95[0] < warmup.exact_match < warmup.ci95[1]
    assert set(warmup.by_difficulty) == {"easy", "medium", "hard"}
    assert warmup.no_call == warmup.groups["no_call"].exact_match
    assert warmup.groups["no_call"].count + warmup.groups["call"].count == HELD_OUT
    assert sum(warmup.errors.values()) == HELD_OUT - warmup.correct
    assert warmup.verdicts == "".join(str(int(p.correct)) for p in rows)


def test_pass_at_k_is_counted_from_the_stored_samples(report):
    warmup, first, again = report.evaluation(0), report.evaluation(1), report.iterations[0]
    assert (warmup.pass_at_k, warmup.pass_examples) == ({"1": pytest.approx(231 / 480), "8": pytest.approx(53 / 60)}, 60)
    assert warmup.pass_at_k_ci95["8"] == pytest.approx(wilson(53, 60))
    low, high = warmup.pass_at_k_ci95["1"]
    assert low < warmup.pass_at_k["1"] < high
    assert first.pass_at_k == again.pass_at_k == {"1": pytest.approx(237 / 480), "8": pytest.approx(54 / 60)}
    assert (first.pass_at_k_ci95, first.pass_examples) == (again.pass_at_k_ci95, again.pass_examples)
    assert report.evaluation(0, "validation").pass_at_k_ci95 == {}


def test_an_iteration_counts_what_its_stages_stored(report, inputs):
    first = report.iterations[0]
    assert (first.scored, first.selected, first.trees) == (BUFFER, BUFFER // 5, 48)
    assert first.pairs == len(inputs.pairs[1]) == first.pair_statistics.count
    assert first.updates == 40
    assert sum(first.stopped.values()) == first.trees
    assert sum(first.perplexity.histogram.counts) == BUFFER
    assert first.perplexity.histogram.edges == report.iterations[2].perplexity.histogram.edges
    assert first.pair_statistics.dropped == {"value gap too small": 21, "too few visits": 14}
    assert sum(first.perplexity.selected.counts) == first.selected
    pairs = inputs.pairs[1]
    assert first.pair_statistics.mean_chosen_visits == pytest.approx(sum(pair.chosen_visits for pair in pairs) / len(pairs))
    assert first.pair_statistics.mean_rejected_visits == pytest.approx(sum(pair.rejected_visits for pair in pairs) / len(pairs))
    assert first.sampled_tokens == sum(tree.sampled_tokens for tree in inputs.trees[1])


def test_a_run_without_preference_pairs_still_says_what_its_search_found():
    inputs = dataclasses.replace(fake_inputs(method="rejection_sampling"), pairs={})
    first = build_report(inputs).iterations[0]
    assert (first.pair_statistics, first.pairs, first.injected_fraction) == (None, 0, None)
    trees = inputs.trees[1]
    assert first.trees == len(trees)
    assert first.pass_rate == sum(tree.correct_samples for tree in trees) / sum(tree.samples for tree in trees)


def test_a_search_that_gave_no_pair_has_no_mean_gap(inputs):
    statistics = build_report(dataclasses.replace(inputs, pairs={1: []})).iterations[0].pair_statistics
    assert (statistics.count, statistics.mean_gap, statistics.mean_chosen_visits, statistics.mean_rejected_visits) == (0, None, None, None)


def test_equal_gaps_share_a_bin_whatever_the_last_bits_of_their_sums(inputs):
    pair = inputs.pairs[1][0]
    values = [(0.9, 0.8), (0.1, 0.0)]  # 0.09999999999999998 and 0.1, where a bin begins
    pairs = [pair.model_copy(update={"chosen_value": chosen, "rejected_value": rejected}) for chosen, rejected in values]
    first = build_report(dataclasses.replace(inputs, pairs={1: pairs})).iterations[0]
    assert max(first.pair_statistics.gap.counts) == 2


def test_the_samples_that_selected_are_part_of_an_iterations_price(inputs):
    scores = [Score(example_id=str(i), stratum="calls", pass_rate=0.5, sampled_tokens=100 + i) for i in range(3)]
    first, second, _ = build_report(dataclasses.replace(inputs, scores={1: scores})).iterations
    assert first.sampled_tokens == 303 + sum(tree.sampled_tokens for tree in inputs.trees[1])
    assert second.sampled_tokens == sum(tree.sampled_tokens for tree in inputs.trees[2])


def test_every_adapter_is_measured_on_the_same_ground_truths_the_last_one_too(report, inputs):
    measured = report.perplexities
    assert [one.iteration for one in measured] == [0, 1, 2, 3]
    assert {(one.count, tuple(one.histogram.edges)) for one in measured} == {(VALIDATION, tuple(measured[0].histogram.edges))}
    assert (measured[0].median, measured[3].median) == (3.0, 1.25)
    values = [found.perplexity for found in inputs.perplexities[3]]
    assert measured[3].geometric_mean == pytest.approx(math.exp(sum(map(math.log, values)) / len(values)))
    assert sum(measured[3].histogram.counts) == VALIDATION


def test_the_kept_iteration_is_the_latest_within_a_standard_error_of_the_best_on_validation(report):
    def made(iteration, dataset, exact):
        return report.evaluation(0, dataset).model_copy(update={"iteration": iteration, "exact_match": exact, "count": 100})

    def kept(*validation):
        return choose_best([made(3, "held_out", 0.9), *(made(k, "validation", exact) for k, exact in enumerate(validation))])

    assert kept(0.5, 0.7, 0.7) == (2, "validation")
    assert kept(0.5, 0.7, 0.66) == (2, "validation")  # one standard error of 0.7 on 100 examples is 0.046
    assert kept(0.5, 0.7, 0.65) == (1, "validation")
    assert kept(0.5, 0.3, 0.4) == (0, "validation")
    assert kept(0.0, 0.0) == (1, "validation")
    assert choose_best([made(0, "held_out", 0.9), made(1, "held_out", 0.1)]) == (1, "last")
    assert choose_best([]) == (None, "last")


def test_the_gain_is_paired_on_the_same_examples(report):
    assert report.gain.iteration == report.best_iteration
    difference = report.evaluation(report.best_iteration).exact_match - report.evaluation(0).exact_match
    assert report.gain.difference == pytest.approx(difference)
    assert report.gain.ci95[0] < report.gain.difference < report.gain.ci95[1]


def test_a_run_that_has_just_begun_has_a_report():
    report = build_report(ReportInputs(config=fake_config()))
    assert (report.best_iteration, report.gain, report.evaluations) == (None, None, [])
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_a_training_curve_is_thinned_and_survives_nan():
    curve = training_curve(
        0, "warmup", [{"update": u, "loss": float("nan") if u == 1 else 1.0 / u, "phase": "easy"} for u in range(1, 1002)]
    )
    assert len(curve.updates) <= CURVE_POINTS + 1
    assert (curve.updates[0], curve.updates[-1]) == (1, 1001)
    assert list(curve.series) == ["loss"]
    assert curve.series["loss"][0] is None


def test_a_histogram_loses_no_value():
    assert histogram([-1, 0.0, 0.5, 1.0, 99], [0.0, 1.0, 2.0]).counts == [3, 2]


def test_the_configuration_digest_follows_the_settings():
    assert config_digest(fake_config()) == config_digest(fake_config())
    assert config_digest(fake_config()) != config_digest(fake_config(seed=18))


def test_nine_tenths_lie_at_or_below_the_90th_percentile():
    assert [p90(range(1, count + 1)) for count in (1, 9, 10, 11, 45, 200)] == [1, 9, 9, 10, 41, 180]


def store(folder, inputs):
    """Write the records as the stages would and return their manifests."""
    content = {("prepare", 0): {"buffer.jsonl": inputs.examples.values(), "held_out.jsonl": []}}
    content |= {(stage, k): {"training.jsonl": rows} for (k, stage), rows in inputs.training.items()}
    for k in range(4):
        content["evaluate", k] = {f"{d}.jsonl": inputs.predictions[k, d] for d in ("held_out", "validation")}
        content["evaluate", k]["pass_counts.jsonl"] = inputs.pass_counts[k, "held_out"]
        content["evaluate", k]["perplexities.jsonl"] = inputs.perplexities[k]
    for k in (1, 2, 3):
        content["score", k] = {"scores.jsonl": inputs.scores[k]}
        content["generate", k] = {"trees.jsonl": inputs.trees[k], "pairs.jsonl": inputs.pairs[k]}
    for (stage, k), files in content.items():
        target = folder / f"i{k}" / stage
        target.mkdir(parents=True)
        for name, rows in files.items():
            lines = [json.dumps(row) if isinstance(row, dict) else row.model_dump_json() for row in rows]
            (target / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    listed = FileEntry(size=1, sha256="0" * 64)
    return [m.model_copy(update={"files": dict.fromkeys(content[m.stage, m.iteration], listed)}) for m in inputs.stages]


def test_inputs_load_from_stored_files_whatever_the_order(tmp_path, inputs):
    manifests = store(tmp_path, inputs)
    loaded = load_inputs(inputs.config, reversed(manifests), lambda role, name: tmp_path / role / name)
    assert loaded == dataclasses.replace(inputs, stages=tuple(manifests), held_out_digest="0" * 64)


def test_a_broken_line_is_named(tmp_path, inputs):
    manifests = store(tmp_path, inputs)
    file = tmp_path / "i1/score/scores.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + '{"example_id": 3}\n', encoding="utf-8")
    problem = rf"i1/score/scores.jsonl:{BUFFER + 1} is no Score: example_id: Input should be a valid string. Another version of itool"
    with pytest.raises(InputError, match=problem):
        load_inputs(inputs.config, manifests, lambda role, name: tmp_path / role / name)
