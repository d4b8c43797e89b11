"""The response syntax: what can be read, where it may be cut, and that nothing makes the scanner fail or crawl."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.data.toolcall import MAX_DEPTH, ToolCallSyntaxError, parse_calls, render_calls, scan
from itool.errors import InputError
from itool.records import Tool, ToolCall

TOOLS = [Tool(name="Market Trends API"), Tool(name="Calc"), Tool(name="Calc (beta)"), Tool(name="/v1/get.it")]
NAMES = st.sampled_from([tool.name for tool in TOOLS]) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,12}", fullmatch=True)
KEYS = st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
# A quote that a closer follows ends a string, so strings are escaped by the renderer: any text must survive.
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
CALLS = st.lists(st.builds(ToolCall, name=NAMES, arguments=st.dictionaries(KEYS, VALUES, max_size=4)), min_size=1, max_size=4)
SNIPPETS = st.sampled_from(
    [
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        ",",
        "=",
        ":",
        '"',
        "'",
        "\\",
        " ",
        "\n",
        "Calc",
        "Calc (beta)",
        "Ca",
        "f(",
        "a=",
        "1",
        "-2.5",
        "tru",
        "true",
        "None",
        '"x"',
        "'y'",
        "[f(a=",
        "]",
        "Hi. ",
        "no?",
        "...",
        ")",
        "。",
        "\\u00",
        "é",
        ";",
    ]
)
MESSES = st.lists(SNIPPETS, max_size=25).map("".join)


def only(text: str) -> dict[str, object]:
    """The arguments of the one call in a text."""
    (call,) = parse_calls(text, TOOLS)
    return call.arguments


@given(CALLS)
def test_rendered_calls_read_back_as_they_were(calls: list[ToolCall]) -> None:
    assert parse_calls(render_calls(calls), TOOLS) == calls


@given(CALLS.map(render_calls) | MESSES | st.text(), st.data())
def test_boundaries_of_a_partial_text_are_the_first_boundaries_of_the_whole(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    whole, part = scan(text, TOOLS).boundaries, scan(text[:cut], TOOLS).boundaries
    assert whole[: len(part)] == part


@given(CALLS.map(render_calls))
def test_boundaries_of_known_names_are_seen_as_soon_as_they_are_reached(text: str) -> None:
    for boundary in scan(text, [*TOOLS[:2], TOOLS[3]]).boundaries:
        assert boundary in scan(text[: boundary.offset], [*TOOLS[:2], TOOLS[3]]).boundaries


@given(MESSES | st.text())
def test_scanning_any_text_ends_without_an_error(text: str) -> None:
    result = scan(text, TOOLS)
    assert [b.offset for b in result.boundaries] == sorted({b.offset for b in result.boundaries})
    assert result.error is None or not result.complete


def test_every_unit_has_its_boundary() -> None:
    text = '[f(a="x", b=3), g()]'
    cuts = [(text[: b.offset], b.kind) for b in scan(text).boundaries]
    assert cuts == [
        ("[f(", "name"),
        ('[f(a="x",', "argument"),
        ('[f(a="x", b=3)', "call"),
        ('[f(a="x", b=3), g(', "name"),
        (text[:-1], "call"),
        (text, "end"),
    ]


def test_a_partial_call_shows_its_closed_arguments_only() -> None:
    result = scan('[f(a=1, b="half')
    assert (result.kind, result.complete, result.error) == ("calls", False, None)
    assert [(call.name, call.arguments, call.closed) for call in result.calls] == [("f", {"a": 1}, False)]
    assert scan("[f(a=1").calls[0].arguments == {}


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("true", True),
        ("True", True),
        ("false", False),
        ("False", False),
        ("null", None),
        ("None", None),
        ("-3", -3),
        ("2.50", 2.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("'it\\'s'", "it's"),
        ("'it's'", "it's"),
        ('"say "hi" twice"', 'say "hi" twice'),
        ('"{"a": 1}"', '{"a": 1}'),
        ('"a\\u00e9\\n\\ud83d\\ude00"', "aé\n😀"),
        ('"\\ud83d \\uDE00\\ud83d\\ud83d\\ude00"', "\\ud83d \\uDE00\\ud83d😀"),  # half of a pair could not be stored
        ("'C:\\dir'", "C:\\dir"),
        ('{\'a\': [1, {"b": None}], "c": (1, 2)}', {"a": [1, {"b": None}], "c": [1, 2]}),
        ("[]", []),
        ("{}", {}),
        ("[\"x\", 'y',]", ["x", "y"]),
        ('"a, b=1) ]"', "a, b=1) ]"),
    ],
)
def test_json_and_python_literals_are_read(literal: str, value: object) -> None:
    got = only(f"[f(a={literal}, b=1)]")["a"]
    assert got == value
    assert type(got) is type(value)


def test_names_that_are_no_identifiers_are_read_whole() -> None:
    text = "[Market Trends API(trend_type='X', country=\"us\"), Calc (beta)(x=1)][/v1/get.it()]"
    assert [call.name for call in parse_calls(text, TOOLS)] == ["Market Trends API", "Calc (beta)", "/v1/get.it"]
    assert parse_calls("[Unknown Name/x.y(a=1)]")[0].name == "Unknown Name/x.y"


@pytest.mark.parametrize("text", ["[f(a=1)][g()]", "[f(a=1)], [g()]", " [f(a=1)]\n[g()] ", "[f(a=1,),g()]"])
def test_several_lists_and_loose_commas_are_read(text: str) -> None:
    assert [call.name for call in parse_calls(text)] == ["f", "g"]


@pytest.mark.parametrize("text", ["", "  ", "No tool fits.", "[Note] not a call", "[]", "[1, 2]", "see [f(a=1)]"])
def test_prose_is_not_calls(text: str) -> None:
    assert scan(text).kind != "calls"
    assert parse_calls(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "[f(1)]",
        "[f(a=1)",
        "[f(a=1, a=2)]",
        "[f(a=g())]",
        "[f(a=)]",
        "[f(a=1)] and more",
        "[f(a=2020-01-01)]",
        "[f(a=1e999)]",
        "[f(a=1) g()]",
        "[f(a={1: 2})]",
    ],
)
def test_broken_calls_are_refused(text: str) -> None:
    with pytest.raises(ToolCallSyntaxError):
        parse_calls(text)


def test_sentences_of_prose_end_at_marks_before_space() -> None:
    text = 'It is 3.5 km. "Really?" Yes!\nA heading\nEnd.'
    assert [text[: b.offset][-5:] for b in scan(text).boundaries] == ["5 km.", 'lly?"', " Yes!", "ding\n"]


def test_a_value_without_a_literal_cannot_be_rendered() -> None:
    with pytest.raises(InputError, match="no JSON literal"):
        render_calls([ToolCall(name="f", arguments={"a": float("nan")})])


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=" + "[" * 200_000,
        '[f(a="' + '" ' * 100_000,
        '[f(a="' + "\\" * 200_001,
        "[" * 200_000,
        "[" + "f(a=1)," * 30_000,
        "[f(" + "a" * 200_000,
        "[f(a=" + "9" * 200_000 + ")]",
        '[f(a="' + '"' + " " * 200_000,
        "." * 200_000,
        ".)" * 100_000,
        "a\n" * 100_000,
        "[" + "a" * 200_000,
    ],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    started = time.process_time()
    scan(text, TOOLS)
    assert time.process_time() - started < 3


def test_depth_is_limited() -> None:
    assert only(f"[f(a={'[' * MAX_DEPTH}{']' * MAX_DEPTH})]")
    with pytest.raises(ToolCallSyntaxError, match="deeper"):
        parse_calls(f"[f(a={'[' * (MAX_DEPTH + 1)}{']' * (MAX_DEPTH + 1)})]")
