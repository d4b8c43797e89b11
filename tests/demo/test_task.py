"""The built-in task: reproducible, well-formed, and with a held-out set that shares nothing with training."""

import hashlib
import json
from itertools import islice

import pytest

from itool.data.toolcall import parse_calls
from itool.demo.exact_match import exact_match
from itool.demo.task import Split, drafts, generate, is_held_out
from itool.demo.tools import TOOL_NAMES, TOOLS
from itool.records import Example

SPLITS: tuple[Split, ...] = ("pretrain", "train", "held_out")


def _queries(split: Split, count: int = 1_500, seed: int = 0) -> set[str]:
    return {draft.query for draft in islice(drafts(split, seed), count)}


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_examples_and_another_seed_others(split: Split) -> None:
    assert generate(split, 40, seed=3) == generate(split, 40, seed=3)
    assert [e.response for e in generate(split, 40, seed=3)] != [e.response for e in generate(split, 40, seed=4)]


def test_a_larger_count_only_adds_examples() -> None:
    assert generate("train", 60, seed=0)[:25] == generate("train", 25, seed=0)


def test_generation_does_not_drift_between_machines_or_versions() -> None:
    text = "\n".join(example.model_dump_json() for example in generate("train", 50, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "284d3b18234ed31c"


def test_no_combination_of_tool_ask_cue_and_value_is_in_both_train_and_held_out() -> None:
    train = {spent for draft in islice(drafts("train", 0), 3_000) for spent in draft.combinations}
    held_out = {spent for draft in islice(drafts("held_out", 0), 1_500) for spent in draft.combinations}
    assert train
    assert held_out
    assert not train & held_out
    assert not any(is_held_out(spent) for spent in train)
    assert all(is_held_out(spent) for spent in held_out)


def test_every_argument_of_a_held_out_example_spends_a_combination() -> None:
    for draft in islice(drafts("held_out", 0), 300):
        assert len(draft.combinations) >= sum(len(arguments) for _, arguments in draft.calls)


def test_pretraining_never_shows_a_tool_of_the_task() -> None:
    for draft in islice(drafts("pretrain", 1), 1_500):
        assert not TOOL_NAMES & {spec.name for spec, _ in draft.offers}


def test_the_three_splits_share_no_query_and_none_repeats_one() -> None:
    sets = [_queries(split) for split in SPLITS]
    assert all(len(queries) == 1_500 for queries in sets)
    assert len(set.union(*sets)) == 4_500


def test_ids_are_unique_and_name_the_split() -> None:
    ids = [example.id for split in SPLITS for example in generate(split, 20, seed=0)]
    assert len(set(ids)) == 60
    assert ids[20] == "demo-train-000000"


@pytest.mark.parametrize("split", SPLITS)
def test_the_response_parses_to_exactly_the_typed_calls(split: Split) -> None:
    for example in generate(split, 300, seed=5):
        assert example.response
        if example.calls:
            assert parse_calls(example.response) == example.calls
        else:
            assert not example.response.startswith("[")


def test_calls_satisfy_the_schema_of_an_offered_tool() -> None:
    for example in generate("train", 400, seed=2):
        offered = {tool.name: tool.parameters for tool in example.tools}
        for call in example.calls:
            schema = offered[call.name]
            assert set(schema["required"]) <= set(call.arguments) <= set(schema["properties"])
            for name, value in call.arguments.items():
                assert _fits(value, schema["properties"][name]), (name, value)


def _fits(value: object, schema: dict[str, object]) -> bool:
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}
    assert isinstance(schema["type"], str)
    return isinstance(value, types[schema["type"]]) and ("enum" not in schema or value in schema["enum"])


def test_the_task_has_the_promised_variety() -> None:
    examples = generate("train", 1_000, seed=0)
    assert len(TOOLS) >= 24
    assert {len(example.tools) for example in examples} == {1, 2, 3, 4, 5, 6}
    assert {len(example.calls) for example in examples} == {0, 1, 2, 3}
    assert 0.1 < sum(example.stratum == "text" for example in examples) / 1_000 < 0.25
    assert {call.name for example in examples for call in example.calls} == TOOL_NAMES
    assert len({example.response for example in examples if not example.calls}) >= 4


def test_both_schema_versions_of_every_tool_appear() -> None:
    seen: dict[str, set[str]] = {}
    for example in generate("train", 1_000, seed=0):
        for tool in example.tools:
            seen.setdefault(tool.name, set()).add(json.dumps(tool.parameters))
    assert all(len(versions) == 2 for versions in seen.values())


def test_when_no_tool_fits_the_wanted_tool_is_not_offered() -> None:
    for draft in islice(drafts("train", 0), 600):
        if not draft.calls and not draft.combinations[0].startswith("small_talk"):
            wanted = draft.combinations[0].split("|")[0]
            assert wanted not in {spec.name for spec, _ in draft.offers}


def test_difficulty_is_left_to_the_pipeline() -> None:
    examples: list[Example] = generate("held_out", 5, seed=0)
    assert all(example.difficulty is None and example.source == "demo" for example in examples)


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ('[g(c=true),f(b=3,a="x")]', '[f(a="x",b=3),g(c=true)]', True),
        ('[f(a="x",b=4)]', '[f(a="x",b=3)]', False),
        ('[f(a="x")]', '[f(a="x"),f(a="x")]', False),
        ('[f(a="x"', '[f(a="x")]', False),
        ("Sorry.", "No tool fits.", True),
        ('[f(a="x")]', "No tool fits.", False),
        ("", "No tool fits.", False),
    ],
)
def test_exact_match_ignores_order_and_nothing_else(answer: str, truth: str, same: bool) -> None:
    assert exact_match(answer, truth) is same
