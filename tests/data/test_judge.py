"""The exact verdict: order-free, typed, and with one fixed phrase per kind of error."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.data.compare import assign, compare_calls, values_equal
from itool.data.judge import judge
from itool.data.toolcall import render_calls
from itool.records import Example, Message, Tool, ToolCall
from itool.search.reward import agreement


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


EXPECTED = [call("f", a=1, b="x"), call("g", c=[1, 2])]
CALLS = Example(id="e", messages=[Message(role="user", content="q")], tools=[Tool(name="f"), Tool(name="g")], calls=EXPECTED)
TEXT = CALLS.model_copy(update={"calls": []})


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        ("1", 1, False),
        (True, 1, False),
        (False, 0, False),
        (None, "", False),
        (" x ", "x", True),
        ("x", "X", False),
        ([1, 2], [2, 1], False),
        ([1, 2.0], [1.0, 2], True),
        ([1, 2], [1], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        (None, None, True),
        ("Cafe\u0301 ", "Caf\u00e9", True),
        ("\u2126", "\u03a9", True),
        ({"\u2126": 1}, {"\u03a9": 1}, True),
        ("\u2460", "1", False),
    ],
)
def test_values_compare_by_type_and_value(left: object, right: object, equal: bool) -> None:
    assert values_equal(left, right) is equal


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[f(a=1, b="x"), g(c=[1, 2])]', None),
        ('[g(c=[1,2])][f(b=" x",a=1.0)]', None),
        ('[f(a=2, b="x"), g(c=[1, 2])]', "wrong_argument"),
        ("[f(a=1), g(c=[1, 2])]", "wrong_argument"),
        ('[f(a=1, b="x", z=0), g(c=[1, 2])]', "wrong_argument"),
        ('[f(a=1, b="x"), h(c=[1, 2])]', "wrong_tool"),
        ("[g(c=[1, 2])]", "missing_call"),
        ('[f(a=1, b="x"), g(c=[1, 2]), g(c=[1, 2])]', "extra_call"),
        ("No tool fits.", "text_instead_of_call"),
        ('[f(a=1, b="x"), g(c=[1, 2])', "unparseable"),
        ('[f(1, "x")]', "unparseable"),
        ("", "unparseable"),
    ],
)
def test_each_error_has_its_phrase(text: str, error: str | None) -> None:
    verdict = judge(text, True, CALLS)
    assert (verdict.correct, verdict.error) == (error is None, error)


def test_where_no_tool_fits_any_text_is_right_and_a_call_is_wrong() -> None:
    assert judge("Sorry, no tool fits.", True, TEXT) == (True, None, [])
    assert judge("[f(a=1)]", True, TEXT).error == "call_instead_of_text"
    assert judge("[f(", True, TEXT).error == "call_instead_of_text"
    assert judge("  ", True, TEXT).error == "unparseable"


def test_a_response_that_ran_into_its_limit_is_wrong() -> None:
    assert judge(render_calls(EXPECTED), False, CALLS).error == "unparseable"
    assert judge("Sorry, no", False, TEXT).error == "unparseable"


def test_a_tools_name_may_hold_what_the_syntax_is_made_of() -> None:
    example = CALLS.model_copy(update={"tools": [Tool(name="f(x)")], "calls": [call("f(x)", a=1)]})
    assert judge("[f(x)(a=1)]", True, example) == (True, None, example.calls)
    assert judge("[f(x)(a=2)]", True, example).error == "wrong_argument"


def test_names_are_compared_composed_as_many_tokenizers_read_them() -> None:
    expected = [call("me\u0301te\u0301o", **{"re\u0301gion": "x"})]
    assert judge('[m\u00e9t\u00e9o(r\u00e9gion="x")]', True, CALLS.model_copy(update={"calls": expected})).correct


def test_a_call_that_was_cut_off_is_no_call() -> None:
    assert judge('[f(a=1, b="x"), g(c=[1, 2]', False, CALLS).calls == EXPECTED[:1]


def test_an_argument_that_agrees_outweighs_one_that_is_too_many() -> None:
    predicted = [call("f"), call("f", a=1, b=2, x=0, y=0, z=0)]
    assert compare_calls(predicted, [call("f", a=1, b=2, c=3)]).pairs == ((1, 0),)


def test_what_is_missing_or_too_many_never_outweighs_an_argument_that_agrees() -> None:
    result = compare_calls([call("f"), call("f", b=1, c=1, d=1)], [call("f", b=1)])
    assert (result.pairs, result.matched_arguments) == (((1, 0),), 1)


def test_duplicates_need_an_assignment_that_greedy_matching_misses() -> None:
    predicted = [call("f", a=1, b=0), call("f", a=1, b=2)]
    expected = [call("f", a=1, b=2), call("f", a=9, b=0)]
    result = compare_calls(predicted, expected)
    assert result.pairs == ((0, 1), (1, 0))
    assert (result.matched_arguments, result.unmatched_arguments) == (3, 2)


def test_arguments_of_both_sides_that_have_no_equal_are_counted() -> None:
    result = compare_calls([call("f", a=1, b=2, x=0)], [call("f", a=1, b=3, c=4), call("g")])
    assert (result.matched_arguments, result.unmatched_arguments) == (1, 4)
    assert (result.missing_calls, result.extra_calls, result.error) == (1, 0, "missing_call")


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.integers(-5, 5), min_size=5, max_size=5), min_size=n, max_size=n)))
def test_the_assignment_is_the_cheapest(costs: list[list[int]]) -> None:
    chosen = assign(costs)
    best = min(sum(costs[r][c] for r, c in enumerate(columns)) for columns in itertools.permutations(range(5), len(costs)))
    assert len(set(chosen)) == len(costs)
    assert sum(costs[r][c] for r, c in enumerate(chosen)) == best


CALL_LISTS = st.lists(
    st.builds(
        ToolCall, name=st.sampled_from("fg"), arguments=st.dictionaries(st.sampled_from("abcd"), st.sampled_from([1, 1.0, True, "1"]))
    ),
    max_size=4,
)


@given(CALL_LISTS, CALL_LISTS, st.randoms())
def test_order_never_matters(predicted: list[ToolCall], expected: list[ToolCall], rng: object) -> None:
    shuffled = list(predicted)
    rng.shuffle(shuffled)
    one, other = compare_calls(predicted, expected), compare_calls(shuffled, expected)
    assert (one.error, one.matched_arguments) == (other.error, other.matched_arguments)
    assert agreement(predicted, expected) == agreement(shuffled, expected)
    assert compare_calls(shuffled, predicted).error is None


@given(CALL_LISTS, CALL_LISTS)
def test_agreement_is_that_of_the_best_of_all_assignments(predicted: list[ToolCall], expected: list[ToolCall]) -> None:
    few, many = sorted((predicted, expected), key=len)
    best = 0
    for chosen in itertools.permutations([*many, *[None] * len(few)], len(few)):
        pairs = [(one, other) for one, other in zip(few, chosen, strict=True) if other is not None and one.name == other.name]
        alike = ((one.arguments.get(key), value) for one, other in pairs for key, value in other.arguments.items())
        best = max(best, len(pairs) + sum(values_equal(*values) for values in alike))
    units = sum(1 + len(call.arguments) for call in (*predicted, *expected)) - best
    assert agreement(predicted, expected) == (best / units if units else 0.0)
