"""Terciles by summed ranks, and a split that no other example can disturb."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.config import DataConfig
from itool.data.difficulty import assign_difficulty, average_ranks
from itool.data.sources.load import load_examples
from itool.data.split import Split, split_examples, unit_hash
from itool.demo.task import generate
from itool.records import Example, Message, Tool, ToolCall

SEAL = Path(__file__).parents[3] / "shared" / "data" / "seal-tools"
CONFIG = DataConfig(buffer_fraction=0.2, validation_fraction=0.1, held_out_fraction=0.1)


def example(name: str, *, tools: int = 1, description: int = 0, parameters: int = 0, calls: int = 1) -> Example:
    return Example(
        id=name,
        messages=[Message(role="user", content=f"What of {name}?")],
        tools=[Tool(name=f"tool_{i}", description="x" * description, parameters={"p" * parameters: 0}) for i in range(tools)],
        calls=[ToolCall(name="tool_0")] * calls,
    )


SHAPES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
IDS = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)


def test_tied_values_share_the_mean_of_their_ranks() -> None:
    assert average_ranks([5, 1, 5, 9, 1, 5]) == [4.0, 1.5, 4.0, 6.0, 1.5, 4.0]
    assert average_ranks([]) == []


def test_three_ranks_decide_together() -> None:
    """Ranks (tools, length, calls): a 1+1+2 = 4, b 2+3+1 = 6, c 3+2+3 = 8."""
    examples = [
        example("c", tools=3, description=0, calls=3),
        example("a", tools=1, description=0, calls=2),
        example("b", tools=2, description=90, calls=1),
    ]
    assert {e.id: e.difficulty for e in assign_difficulty(examples)} == {"a": "easy", "b": "medium", "c": "hard"}


@pytest.mark.parametrize("sign", ["tools", "description", "parameters", "calls"])
def test_each_sign_decides_where_the_others_are_equal(sign: str) -> None:
    examples = [example(name, **{sign: size}) for name, size in (("a", 3), ("b", 1), ("c", 2))]
    assert {e.id: e.difficulty for e in assign_difficulty(examples)} == {"b": "easy", "c": "medium", "a": "hard"}


@given(SHAPES, st.randoms())
def test_difficulties_divide_evenly_and_ignore_the_order(shapes: list[tuple[int, int, int]], rng: random.Random) -> None:
    examples = [example(str(i), tools=t, description=d, calls=c) for i, (t, d, c) in enumerate(shapes)]
    shuffled = list(examples)
    rng.shuffle(shuffled)
    levels = {e.id: e.difficulty for e in assign_difficulty(examples)}
    assert levels == {e.id: e.difficulty for e in assign_difficulty(shuffled)}
    sizes = [Counter(levels.values())[name] for name in ("easy", "medium", "hard")]
    assert max(sizes) - min(sizes) <= 1
    assert [e.id for e in assign_difficulty(shuffled)] == [e.id for e in shuffled]


def place(examples: list[Example], seed: int) -> dict[str, str]:
    split = split_examples(examples, CONFIG, seed)
    parts = {"warmup": split.warmup, "buffer": split.buffer, "validation": split.validation, "held_out": split.held_out}
    return {e.id: name for name, part in parts.items() for e in part}


@given(IDS, st.text(min_size=1, max_size=8), st.integers(0, 5), st.randoms())
def test_adding_an_example_moves_no_other(ids: list[str], new: str, seed: int, rng: random.Random) -> None:
    examples = [example(name) for name in ids]
    before = place(examples, seed)
    assert len(before) == len(examples)
    rng.shuffle(examples)
    assert before.items() <= place([example(new), *[e for e in examples if e.id != new]], seed).items()


def test_shares_are_met_on_average_and_differ_by_seed() -> None:
    examples = [example(f"e{i}") for i in range(5000)]
    sizes = Counter(place(examples, 1).values())
    assert abs(sizes["buffer"] - 1000) < 150
    assert abs(sizes["validation"] - 500) < 100
    assert abs(sizes["held_out"] - 500) < 100
    assert place(examples, 1) != place(examples, 2)


def test_data_with_a_held_out_set_lose_nothing_to_it() -> None:
    examples, held_out = [example(f"e{i}") for i in range(500)], [example("h1"), example("h2")]
    split = split_examples(examples, CONFIG, 1, held_out)
    assert split.held_out == held_out
    assert len(split.warmup) + len(split.buffer) + len(split.validation) == 500
    assert split_examples(examples, CONFIG, 1, []).held_out == []


def test_another_buffer_share_leaves_the_reported_sets_alone() -> None:
    examples = [example(f"e{i}") for i in range(500)]
    wide = split_examples(examples, CONFIG.model_copy(update={"buffer_fraction": 0.5}), 1)
    assert wide.held_out == split_examples(examples, CONFIG, 1).held_out
    assert wide.validation == split_examples(examples, CONFIG, 1).validation


def test_turns_of_a_conversation_stay_together() -> None:
    assert unit_hash(1, "c9#turn1") == unit_hash(1, "c9#turn13") == unit_hash(1, "c9")
    assert unit_hash(1, "issue#12") != unit_hash(1, "issue#13")


def conversation(name: str, *turns: str, tools: Sequence[Tool] = ()) -> Example:
    """An example whose messages are these, from the user and the assistant by turns."""
    messages = [Message(role="assistant" if number % 2 else "user", content=text) for number, text in enumerate(turns)]
    return Example(id=name, messages=messages, tools=list(tools), calls=[], response="Fine.")


def test_examples_that_open_alike_go_where_the_first_of_them_goes() -> None:
    """ToolACE's ids hash the whole row, xLAM's are numbers: neither tells that two rows ask the same."""
    examples = []
    for number in range(400):
        examples.append(conversation(f"a{number}", f"question {number}"))
        examples.append(conversation(f"b{number}#turn3", f"question {number}", "answer", "thanks"))
    places = place(examples, 1)
    assert all(places[f"a{number}"] == places[f"b{number}#turn3"] for number in range(400))
    alone = place([e for e in examples if e.id.startswith("a")], 1)
    assert alone.items() <= places.items()


def test_a_greeting_of_the_assistant_is_no_answer_yet() -> None:
    greeting = Message(role="assistant", content="Hello.")
    greeted = [Example(id=f"g{n}", messages=[greeting, Message(role="user", content=f"q{n}")], calls=[]) for n in range(50)]
    assert place(greeted, 1) == {e.id: place([e], 1)[e.id] for e in greeted}


def test_other_tools_or_another_question_make_another_example() -> None:
    tools = [Tool(name="f"), Tool(name="g")]
    others = [conversation(f"c{number}", "q", tools=[Tool(name=f"f{number}")]) for number in range(50)]
    assert place(others, 1) == {e.id: place([e], 1)[e.id] for e in others}
    shuffled = [conversation(f"d{number}", "q", tools=tools[:: 1 if number % 2 else -1]) for number in range(50)]
    assert len(set(place(shuffled, 1).values())) == 1
    schemas = [{"type": "object", "description": "\ud800"}, {"description": "\ud800", "type": "object"}]
    same = [conversation(f"e{number}", "q", tools=[Tool(name="f", parameters=schemas[number % 2])]) for number in range(50)]
    assert len(set(place(same, 1).values())) == 1


def test_what_opens_as_a_held_out_example_is_left_out_of_training_and_counted() -> None:
    held_out = [conversation("h#turn3", "q", "a", "and then?")]
    split = split_examples([conversation("t", "q"), conversation("u", "q2")], CONFIG, 1, held_out)
    assert split.held_out == held_out
    assert [e.id for e in [*split.warmup, *split.buffer, *split.validation]] == ["u"]
    assert split.repeats_held_out == 1


def test_composed_and_decomposed_characters_are_one_question() -> None:
    """Qwen's tokenizers, among others, read both as the same tokens."""
    composed, decomposed = "Zürich", "Zu\u0308rich"
    assert composed != decomposed
    asked = [conversation("h", composed, tools=[Tool(name="f", description=decomposed)])]
    split = split_examples([conversation("t", decomposed, tools=[Tool(name="f", description=composed)])], CONFIG, 1, asked)
    assert (split.repeats_held_out, split.warmup, split.buffer, split.validation) == (1, [], [], [])


def ids_digest(split: Split) -> list[tuple[int, str]]:
    """Size and a digest of the ids of warm-up, buffer, validation and held-out set."""
    parts = [[e.id for e in part] for part in (split.warmup, split.buffer, split.validation, split.held_out)]
    return [(len(ids), hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]) for ids in parts]


def test_the_division_of_the_built_in_task_stays_what_was_measured() -> None:
    config = DataConfig(source="demo", buffer_fraction=0.33, validation_fraction=0.1)
    split = split_examples(generate("train", 2100, 17), config, 17, generate("held_out", 500, 17))
    assert [e.id[-6:] for e in split.buffer[:6]] == ["000002", "000003", "000006", "000009", "000012", "000015"]
    assert ids_digest(split) == [(1222, "391097ca"), (666, "5956074a"), (212, "937489cf"), (500, "670ca7e4")]
    assert split.repeats_held_out == 0


@pytest.mark.skipif(not SEAL.is_dir(), reason="no Seal-Tools data beside the repository")
def test_the_division_of_seal_tools_stays_what_was_measured() -> None:
    files = {"path": str(SEAL / "dev.jsonl"), "held_out_path": str(SEAL / "test_in_domain.jsonl")}
    shares = {"candidate_tools": 3, "count": 560, "held_out_count": 120, "buffer_fraction": 0.2, "validation_fraction": 0.08}
    config = DataConfig.model_validate({"source": "seal_tools", **files, **shares})
    loaded = load_examples(config)
    split = split_examples(loaded.examples, config, 17, loaded.held_out)
    assert ids_digest(split) == [(387, "28deca76"), (126, "d4729fc3"), (47, "f0cc5552"), (120, "10e5f599")]
