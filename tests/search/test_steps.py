from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.records import Tool
from itool.search.reading import TokenReader
from itool.search.steps import Granularity, Step, split_steps, step_ends
from tests.fakes.byte_tokenizer import OpaqueTokenizer, byte_tokenizer

TOKENIZER = byte_tokenizer()
READER = TokenReader(TOKENIZER)
TWO_CALLS = '[book_table(city="Rome", people=2), get_weather(city="Oslo")]'


def _split(text: str, granularity: Granularity = "argument", prefix: str = "") -> list[Step]:
    ids = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
    return split_steps(READER, TOKENIZER.encode(prefix), ids, granularity=granularity, tools=[Tool(name="book_table")])


def _split_by_character(text: str, granularity: Granularity) -> list[str]:
    """The steps of a tokenizer that has one token per byte: boundaries are met exactly."""
    ids = [TOKENIZER.encode(sign)[0] for sign in text] + [TOKENIZER.eos_token_id]
    return [step.text for step in split_steps(READER, (), ids, granularity=granularity)]


def test_arguments_are_steps() -> None:
    assert _split_by_character(TWO_CALLS, "argument") == [
        "[book_table(", 'city="Rome",', " people=2)", ", get_weather(", 'city="Oslo")', "]",
    ]  # fmt: skip


def test_calls_are_steps() -> None:
    assert _split_by_character(TWO_CALLS, "call") == ['[book_table(city="Rome", people=2)', ', get_weather(city="Oslo")', "]"]


def test_a_response_is_one_step_for_best_of_n() -> None:
    assert _split_by_character(TWO_CALLS, "response") == [TWO_CALLS]


def test_sentences_are_steps_of_prose() -> None:
    assert _split_by_character("I'm sorry. No tool fits 3.5 stars. Bye!", "argument") == ["I'm sorry.", " No tool fits 3.5 stars.", " Bye!"]


def test_a_comma_inside_a_string_ends_no_step() -> None:
    assert _split_by_character('[f(a="x, y)",b=1)]', "argument") == ["[f(", 'a="x, y)",', "b=1)", "]"]


def test_a_step_ends_at_the_first_token_that_reaches_the_boundary() -> None:
    # boundaries after characters 3 and 6; the second token covers 2..5, so it stays whole
    assert step_ends([2, 5, 6, 8], [3, 6], 0) == [2, 3, 4]


def test_two_boundaries_in_one_token_make_one_step() -> None:
    assert step_ends([2, 7, 9], [3, 6], 0) == [2, 3]


def test_the_end_of_turn_is_no_step_of_its_own() -> None:
    # the boundary is the last character; two tokens without text follow
    assert step_ends([2, 4, 4, 4], [2, 4], 0) == [1, 4]


def test_boundaries_before_the_state_cut_nothing() -> None:
    assert step_ends([2, 4, 6, 8], [1, 4, 6], 2) == [3, 4]


def test_an_empty_sample_has_no_steps() -> None:
    assert split_steps(READER, TOKENIZER.encode("[f("), (), granularity="argument") == []


def test_a_sample_of_end_of_turn_alone_is_one_step_without_text() -> None:
    steps = split_steps(READER, (), [TOKENIZER.eos_token_id], granularity="argument")
    assert [(step.ids, step.text) for step in steps] == [((TOKENIZER.eos_token_id,), "")]


@pytest.mark.parametrize("text", ["[f(a=", "[[[", "[f(a=1))]", '[f(a="', "[f(a=1)] and more", "]", "(", "[f(a=1),", "[f(a=1) g("])
def test_malformed_calls_are_split_without_loss(text: str) -> None:
    steps = _split(text)
    assert "".join(step.text for step in steps) == text
    assert steps[-1].state_text == text


PIECES = ["[", "]", "f(", "a=", '"x"', "1", ",", ")", " ", ". ", "é", "🙂", '"', "get_weather("]
RESPONSES = st.one_of(
    st.text(),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
)


@given(RESPONSES, st.sampled_from(["argument", "call", "response"]))
def test_the_steps_are_the_sample_and_their_text_is_the_response(text: str, granularity: Granularity) -> None:
    ids = (*TOKENIZER.encode(text), TOKENIZER.eos_token_id)
    steps = split_steps(READER, (), ids, granularity=granularity)
    joined = tuple(token for step in steps for token in step.ids)
    assert joined == ids
    assert READER.decode(joined) == text == "".join(step.text for step in steps)
    assert all(step.ids for step in steps)


@given(RESPONSES, st.integers(0, 40))
def test_a_continuation_is_cut_as_the_whole_response_was(text: str, depth: int) -> None:
    """What a search relies on: sampling the same tokens again from an inner state leads to the same nodes."""
    ids = (*TOKENIZER.encode(text), TOKENIZER.eos_token_id)
    whole = [step.ids for step in split_steps(READER, (), ids, granularity="argument")]
    depth = min(depth, len(whole) - 1)
    prefix = tuple(token for step in whole[:depth] for token in step)
    assert [step.ids for step in split_steps(READER, prefix, ids[len(prefix) :], granularity="argument")] == whole[depth:]


@given(st.lists(st.integers(0, 359), max_size=30))
def test_any_token_ids_are_read_as_the_tokenizer_decodes_them(ids: list[int]) -> None:
    ids = [token for token in ids if token < TOKENIZER.backend_tokenizer.get_vocab_size()]
    reading = READER.read(ids)
    assert reading.text == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert len(reading.ends) == len(ids)
    assert reading.ends == sorted(reading.ends)
    assert not ids or reading.ends[-1] == len(reading.text)


@given(RESPONSES)
def test_the_byte_table_and_the_tokenizer_agree_on_positions(text: str) -> None:
    if "\ufffd" in text:
        return
    ids = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
    assert READER.read(ids) == TokenReader(OpaqueTokenizer(TOKENIZER)).read(ids)
