"""Eq. (5), (6), (8), (9) against numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itool.records import Tool, ToolCall
from itool.search.mcts import action_value, puct, state_value, step_prior
from itool.search.reward import agreement, partial_outcome, state_reward, step_reward, terminal_outcome
from tests.search.scenes import PROSE, WEATHER, text_example, weather_example


def test_puct_is_value_plus_prior_weighted_exploration() -> None:
    # 0.5 + 2 * 0.3 * sqrt(9) / (1 + 2) = 0.5 + 0.6
    assert puct(0.5, 0.3, parent_visits=9, visits=2, c=2.0) == pytest.approx(1.1)


def test_puct_with_c_zero_is_greedy() -> None:
    assert puct(0.25, 0.9, parent_visits=100, visits=0, c=0.0) == 0.25


def test_a_reward_is_outcome_plus_weighted_confidence() -> None:
    assert state_reward(0.5, 0.8, 1.0) == pytest.approx(1.3)
    assert state_reward(0.5, 0.8, 0.25) == pytest.approx(0.7)
    assert state_reward(0.5, None, 1.0) == 0.5


def test_a_step_earns_the_difference_of_its_states() -> None:
    assert step_reward(0.75, 0.5) == -0.25


def test_an_action_value_is_reward_plus_discounted_value() -> None:
    assert action_value(0.25, 0.5, gamma=0.9) == pytest.approx(0.7)


def test_a_state_value_is_the_visit_weighted_mean_of_its_actions() -> None:
    # (3 * 1 + 1 * -0.5 + 4 * 0.25) / 8
    assert state_value([(3, 1.0), (1, -0.5), (4, 0.25)]) == pytest.approx(3.5 / 8)


def test_a_state_without_actions_is_worth_nothing_more() -> None:
    assert state_value([]) == 0.0


def test_a_prior_is_the_probability_of_the_whole_step() -> None:
    assert step_prior([math.log(0.5), math.log(0.25)]) == pytest.approx(0.125)


def test_a_golden_tree_of_three_levels() -> None:
    # root R=0 -> A (R .5, N 3) -> A1 (R 1, N 2, terminal), A2 (R .4, N 1, terminal);  root -> B (R .2, N 1, terminal).  gamma = 0.9
    q_a1 = action_value(step_reward(0.5, 1.0), 0.0, 0.9)
    q_a2 = action_value(step_reward(0.5, 0.4), 0.0, 0.9)
    v_a = state_value([(2, q_a1), (1, q_a2)])
    assert v_a == pytest.approx(0.3)  # (2 * 0.5 - 0.1) / 3
    q_a = action_value(step_reward(0.0, 0.5), v_a, 0.9)
    assert q_a == pytest.approx(0.77)  # 0.5 + 0.9 * 0.3
    q_b = action_value(step_reward(0.0, 0.2), 0.0, 0.9)
    assert state_value([(3, q_a), (1, q_b)]) == pytest.approx(0.6275)  # (3 * 0.77 + 0.2) / 4
    assert puct(q_a, 0.6, 4, 3, 1.0) == pytest.approx(0.77 + 0.6 * 2 / 4)
    assert puct(q_b, 0.4, 4, 1, 1.0) == pytest.approx(0.2 + 0.4 * 2 / 2)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=10))
def test_with_gamma_one_the_rewards_of_a_chain_telescope(rewards: list[float]) -> None:
    value = 0.0
    for before, after in reversed(list(pairwise(rewards))):
        value = state_value([(1, action_value(step_reward(before, after), value, 1.0))])
    assert value == pytest.approx(rewards[-1] - rewards[0], abs=1e-9)


def test_a_response_that_cannot_be_used_is_worth_nothing_whatever_it_has_right() -> None:
    """Decision 0010. The call is right and closed in all of them."""
    for text, finished in ((WEATHER[:-1], True), (WEATHER, False), (WEATHER[:-1] + ", get_wea", False)):
        assert terminal_outcome(text, finished, weather_example()) == (0.0, False)
    assert terminal_outcome(WEATHER, True, weather_example()) == (1.0, True)
    assert terminal_outcome(PROSE, True, text_example()) == (1.0, True)


def test_a_wrong_response_that_can_be_read_is_worth_what_of_it_agrees() -> None:
    """Four units; one wrong argument, one missing, a call too many of one unit, another tool of one, a call that is missing."""
    two = weather_example(calls=[*weather_example().calls, _call("now")])
    for text, example, value in (
        (WEATHER.replace("Oslo", "Rome"), weather_example(), 3 / 5),
        ('[get_weather(city="Oslo",unit="celsius")]', weather_example(), 3 / 4),
        (WEATHER[:-1] + ",now()]", weather_example(), 4 / 5),
        (WEATHER[:-1] + ",then()]", two, 4 / 6),
        (WEATHER, two, 4 / 5),
    ):
        assert terminal_outcome(text, True, example) == (pytest.approx(value), False)


def _call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def test_a_state_is_worth_the_units_that_it_has_closed_until_it_cannot_become_calls_any_more() -> None:
    beginning = '[get_weather(city="Oslo",unit="celsius",'
    assert partial_outcome(beginning, weather_example()) == pytest.approx(3 / 4)
    assert partial_outcome(beginning + ",", weather_example()) == 0.0, "an argument without a name"
    assert partial_outcome(WEATHER[:-1], weather_example()) == 1.0
    assert partial_outcome(WEATHER[:-1] + "and", weather_example()) == 0.0
    named = weather_example(tools=[Tool(name="f(x)")], calls=[_call("f(x)", a=1, b=2)])
    assert partial_outcome("[f(x)(a=1,", named) == pytest.approx(2 / 3), "a known name may hold any character"


def test_agreement_counts_names_and_arguments() -> None:
    expected = [_call("f", a=1, b=2), _call("g", c="x")]  # 5 units
    assert agreement([], expected) == 0.0
    assert agreement([_call("f")], expected) == pytest.approx(1 / 5)
    assert agreement([_call("f", b=2)], expected) == pytest.approx(2 / 5)
    assert agreement([_call("f", a=1, b=9)], expected) == pytest.approx(2 / 6)  # one wrong unit
    assert agreement([_call("f", a=1, z=0)], expected) == pytest.approx(2 / 6)  # and one superfluous unit
    assert agreement([_call("g", c="x"), _call("f", b=2, a=1)], expected) == 1.0
    assert agreement([_call("g", c="x"), _call("f", b=2, a=1), _call("h", z=0)], expected) == pytest.approx(5 / 7)
