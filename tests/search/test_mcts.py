from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from itool.records import SearchTree, Tool, ToolCall
from itool.search import mcts
from itool.search.mcts import is_solved, select
from itool.search.seeds import draw_seed
from itool.search.tree import Node, new_root
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import LOGPROB, ScriptedPolicy
from tests.search.scenes import (
    OTHER_ORDER,
    PROMPT,
    PROSE,
    WEATHER,
    WRONG_CITY,
    WRONG_DAYS,
    WRONG_UNIT,
    children,
    new_policy,
    new_search,
    run_search,
    settings,
    text_example,
    weather_example,
)


def _grow(parent: Node, name: str, *, visits: int, q: float = 0.0, prior: float = 0.5, draws: int = 99, closed: bool = False) -> Node:
    step = tuple(name.encode())
    node = Node(parent, step, name, name, parent.depth + 1, prior=prior, visits=visits, action_value=q, draws=draws, closed=closed)
    parent.children[step] = node
    parent.visits += visits
    parent.draws = 99
    return node


def _state_of(policy: ScriptedPolicy, request: int) -> str:
    return str(byte_tokenizer().decode(list(policy.requests[request].ids[len(PROMPT) :]), skip_special_tokens=True))


def test_selection_with_c_zero_takes_the_highest_value() -> None:
    root = new_root()
    _grow(root, "low", visits=1, q=0.2, prior=1.0, draws=0)
    high = _grow(root, "high", visits=50, q=0.3, prior=0.0, draws=0)
    assert select(root, 0.0, lambda node: 4) is high


def test_selection_explores_what_is_likely_and_little_visited() -> None:
    root = new_root()
    _grow(root, "often", visits=50, q=0.3, prior=0.5, draws=0)
    rare = _grow(root, "rare", visits=1, q=0.2, prior=0.5, draws=0)
    assert select(root, 1.0, lambda node: 4) is rare


def test_selection_prefers_the_likelier_of_two_that_are_equal_otherwise() -> None:
    root = new_root()
    _grow(root, "unlikely", visits=3, q=0.2, prior=0.2, draws=0)
    likely = _grow(root, "likely", visits=3, q=0.2, prior=0.6, draws=0)
    assert select(root, 1.0, lambda node: 4) is likely


def test_selection_explores_more_the_more_rollouts_passed_the_state() -> None:
    """0.5 + 0.1 sqrt(N) / 2 against 0.6 sqrt(N) / 2: they meet at N = 4, and the 99 draws of the root are no roll-outs."""
    root = new_root()
    good = _grow(root, "good", visits=1, q=0.5, prior=0.1, draws=0)
    likely = _grow(root, "likely", visits=1, q=0.0, prior=0.6, draws=0)
    assert select(root, 1.0, lambda node: 4) is good
    root.visits = 5
    assert select(root, 1.0, lambda node: 4) is likely


def test_selection_passes_states_that_were_sampled_enough_and_avoids_closed_ones() -> None:
    root = new_root()
    _grow(root, "closed", visits=9, q=1.0, closed=True)
    open_ = _grow(root, "open", visits=9, q=0.1)
    leaf = _grow(open_, "leaf", visits=1, draws=1)
    assert select(root, 1.0, lambda node: 4) is leaf


def test_a_tree_whose_samples_are_all_right_has_no_deficiency() -> None:
    policy = new_policy([WEATHER, OTHER_ORDER])
    tree = run_search(new_search(policy, settings()))
    assert tree.stopped == mcts.NO_DEFICIENCY
    assert (tree.samples, tree.correct_samples, tree.simulations) == (8, 8, 1)
    assert not policy.logprob_requests, "nothing to inject, nothing to ask"


def test_a_tree_without_anything_right_and_without_ground_truth_is_hopeless() -> None:
    tree = run_search(new_search(new_policy([PROSE]), settings(), inject=False))
    assert tree.stopped == mcts.HOPELESS
    assert tree.simulations == 1


def test_the_ground_truth_can_be_chosen_where_no_sample_is_right() -> None:
    injected = run_search(new_search(new_policy([WRONG_UNIT]), settings(root_samples=4, simulations=1)))
    right = [node for node in injected.nodes if node.correct]
    assert [node.injected for node in right] == [True]
    assert injected.samples == 4, "the ground truth is no sample"
    assert injected.nodes[0].visits == 5, "and yet a roll-out"
    sampled = run_search(new_search(new_policy([WRONG_UNIT, WEATHER]), settings(root_samples=8)))
    assert not any(node.injected for node in sampled.nodes if node.correct), "a sample got there by itself"


def test_an_injected_correction_is_visited_next() -> None:
    """The first expansion after the root lands on the ground truth's own step: its value becomes an estimate of the policy there."""
    policy = new_policy([WRONG_UNIT])
    tree = run_search(new_search(policy, settings(root_samples=6, simulations=2, min_visits=2), run_seed=1))
    assert tree.simulations == 2
    state = _state_of(policy, 1)
    assert "celsius" in state
    assert WEATHER.startswith(state)
    [step] = [node for node in tree.nodes if "celsius" in node.text]
    assert (step.visits, step.injected) == (1 + 4, True), "visited, and yet no sample has chosen it"


def test_the_ground_truth_is_no_draw_from_its_states() -> None:
    """Of one continuation per state the injected path has none, so its first own step is where the next is asked for."""
    policy = new_policy([WRONG_UNIT])
    run_search(new_search(policy, settings(root_samples=6, width=1, simulations=2, min_visits=2)))
    assert _state_of(policy, 1) == WEATHER[: WEATHER.index("days")]


def test_the_ground_truth_is_injected_beside_right_samples_too() -> None:
    policy = new_policy([WEATHER, WRONG_UNIT])
    tree = run_search(new_search(policy, settings(simulations=1)))
    assert 0 < tree.correct_samples < tree.samples
    assert (tree.nodes[0].visits, len(policy.logprob_requests)) == (tree.samples + 1, 1)


def test_a_request_asks_at_the_configured_temperature_for_what_the_response_has_left() -> None:
    policy = new_policy([WRONG_UNIT, WRONG_DAYS, WRONG_CITY])
    run_search(new_search(policy, settings(root_samples=2, simulations=3, temperature=0.7), inject=False, max_tokens=100))
    assert {request.temperature for request in policy.requests} == {0.7}
    assert [request.max_tokens + len(request.ids) for request in policy.requests] == [100 + len(PROMPT)] * 3
    assert len({request.max_tokens for request in policy.requests}) > 1


def test_a_continuation_that_two_states_have_in_common_counts_for_the_one_it_was_drawn_in() -> None:
    """Whatever the city, the rest of the response is the same tokens. A state that has its samples is not asked again."""
    cities = [WEATHER.replace("Oslo", city) for city in ("Rome", "Bonn", "Lima")]
    policy = new_policy(cities)
    tree = run_search(new_search(policy, settings(root_samples=6, width=9, simulations=5, c_puct=9.0), inject=False, run_seed=1))
    states = [_state_of(policy, index) for index in range(1, 5)]
    assert len(set(states)) == 4
    assert len({city for city in ("Rome", "Bonn", "Lima") if any(state.endswith(f'"{city}",') for state in states)}) > 1
    assert sum(node.visits for node in tree.nodes if node.terminal) == tree.samples


def test_the_steps_of_a_call_are_those_of_a_tool_whatever_its_name_holds() -> None:
    answers = ["[f(x)(a=1,b=2)]", "[f(x)(a=1,b=3)]"]
    example = weather_example(tools=[Tool(name="f(x)")], calls=[ToolCall(name="f(x)", arguments={"a": 1, "b": 2})], response=answers[0])
    tree = run_search(new_search(new_policy(answers), settings(root_samples=8, simulations=1), example=example))
    assert [node.text for node in tree.nodes[1:3]] == ["[f(x)(", "a=1,"]
    assert {node.text for node in tree.nodes[3:]} == {"b=2)]", "b=3)]"}


def test_a_prior_is_the_probability_of_a_steps_own_tokens() -> None:
    tree = run_search(new_search(new_policy([WEATHER, WRONG_UNIT]), settings(simulations=2)))
    for node in tree.nodes[1:]:
        assert node.prior == pytest.approx(math.exp(LOGPROB * len(node.step_ids)))


@pytest.mark.parametrize(("c_puct", "beginning"), [(0.0, "["), (100.0, "I cannot")])
def test_c_puct_trades_what_is_good_for_what_was_little_visited(c_puct: float, beginning: str) -> None:
    policy = new_policy([PROSE, WRONG_UNIT, WRONG_CITY, WRONG_DAYS])
    run_search(new_search(policy, settings(width=9, simulations=2, c_puct=c_puct), inject=False))
    assert _state_of(policy, 1).startswith(beginning)


def test_a_state_whose_samples_are_all_right_is_left_alone() -> None:
    """It has the highest value and ways to go on that were hardly sampled, but nothing there to correct."""
    same_day = '[get_weather(unit="celsius",days=3,city="Oslo")]'
    policy = new_policy([OTHER_ORDER, same_day, WRONG_CITY])
    search = new_search(policy, settings(root_samples=9, width=6, c_puct=0.0, simulations=9, min_visits=99), inject=False)
    run_search(search)
    right = OTHER_ORDER[: OTHER_ORDER.index("city")]
    assert not [state for state in (_state_of(policy, index) for index in range(len(policy.requests))) if state.startswith(right)]


def test_a_solved_tree_stops() -> None:
    tree = run_search(new_search(new_policy([WEATHER, WRONG_UNIT]), settings(root_samples=12, simulations=9)))
    assert tree.stopped == mcts.SOLVED
    assert tree.simulations < 9


def test_a_tree_stops_at_its_simulation_limit() -> None:
    answers = [WRONG_UNIT, WRONG_DAYS, WRONG_CITY]
    tree = run_search(new_search(new_policy(answers), settings(root_samples=2, width=9, simulations=3), inject=False))
    assert tree.stopped == mcts.SIMULATION_LIMIT
    assert tree.simulations == 3


def test_a_tree_with_nothing_left_to_expand_is_exhausted() -> None:
    tree = run_search(new_search(new_policy([WRONG_UNIT]), settings(root_samples=4, width=2, simulations=50, min_visits=99), inject=False))
    assert tree.stopped == mcts.EXHAUSTED


def test_a_branch_below_the_depth_limit_is_not_expanded() -> None:
    policy = new_policy([WRONG_UNIT, WRONG_DAYS])
    run_search(new_search(policy, settings(root_samples=2, width=9, simulations=50, depth_limit=1), inject=False))
    assert len(policy.requests) == 2, "the root and the one step below it"


def test_a_malformed_or_cut_off_answer_is_worth_nothing_and_ends_its_branch() -> None:
    tree = run_search(new_search(new_policy(['[get_weather(city="Oslo",un']), settings(simulations=1), inject=False))
    assert [(node.outcome, node.correct) for node in tree.nodes if node.terminal] == [(0.0, False)]
    cut = run_search(new_search(new_policy([WEATHER]), settings(simulations=1), inject=False, max_tokens=9))
    assert [(node.outcome, node.correct) for node in cut.nodes if node.terminal] == [(0.0, False)]
    assert cut.sampled_tokens == 8 * 9


def test_an_empty_answer_is_one_terminal_step() -> None:
    tree = run_search(new_search(new_policy([""]), settings(simulations=1), inject=False))
    assert len(tree.nodes) == 2
    assert tree.nodes[1].terminal
    assert not tree.nodes[1].correct


def test_text_where_no_tool_fits_is_right_and_a_call_is_wrong() -> None:
    tree = run_search(new_search(new_policy([PROSE, WEATHER]), settings(simulations=1), example=text_example(), run_seed=3))
    verdicts = {tree.nodes[index].text[0]: tree.nodes[index].outcome for index in children(tree, 0)}
    assert 0 < tree.correct_samples < 8
    assert verdicts["["] == 0.0
    assert {node.correct for node in tree.nodes if node.terminal} == {True, False}


def test_only_the_calls_of_an_example_decide() -> None:
    """`data.buffer_labels: checker`: no ground-truth text anywhere."""
    tree = run_search(new_search(new_policy([WEATHER, WRONG_UNIT]), settings(), example=weather_example(response=None)))
    assert 0 < tree.correct_samples < tree.samples


def test_self_evaluation_asks_once_per_state_and_enters_the_reward() -> None:
    asked, given = list[str](), list[float]()

    def confidence(ids: Sequence[int]) -> float:
        asked.append(byte_tokenizer().decode(list(ids)))
        given.append(len(ids) % 7 / 7)
        return given[-1]

    policy = new_policy([WEATHER, WRONG_UNIT], confidence=confidence)
    tree = run_search(new_search(policy, settings(simulations=1, confidence_weight=0.5)))
    assert policy.questions == len(tree.nodes)
    for response in (WEATHER, WRONG_UNIT):
        assert any(response in question for question in asked), "about the whole response so far"
    assert len({node.confidence for node in tree.nodes}) > 2, "a constant one would telescope away"
    assert sorted(node.confidence or 0.0 for node in tree.nodes) == sorted(given), 'of "correct"'
    rewards = [node.outcome + 0.5 * (node.confidence or 0.0) for node in tree.nodes]
    for node, reward in zip(tree.nodes, rewards, strict=True):
        if node.parent is not None:
            assert node.action_value == pytest.approx(reward - rewards[node.parent] + node.value)


def test_a_state_that_is_drawn_from_again_draws_something_else() -> None:
    seeds = {draw_seed(17, 1, "a", (5, 6), visit) for visit in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_depends_on_every_part() -> None:
    base = draw_seed(17, 1, "a", (5, 6), 0)
    others = [(18, 1, "a", (5, 6)), (17, 2, "a", (5, 6)), (17, 1, "b", (5, 6)), (17, 1, "a", (56,))]
    assert len({base, *(draw_seed(*parts, 0) for parts in others)}) == 5


ANSWERS = [WEATHER, OTHER_ORDER, WRONG_UNIT, WRONG_CITY, WRONG_DAYS, PROSE, '[get_weather(city="Oslo"', "[get_weather()]", ""]
SCENES = st.fixed_dictionaries(
    {
        "answers": st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=5, unique=True),
        "root_samples": st.integers(1, 8),
        "width": st.integers(1, 4),
        "simulations": st.integers(1, 6),
        "gamma": st.sampled_from([1.0, 0.7]),
        "c_puct": st.sampled_from([0.0, 1.0]),
        "granularity": st.sampled_from(["call", "argument"]),
        "inject": st.booleans(),
        "run_seed": st.integers(0, 5),
    }
)


def _search_scene(scene: dict[str, object]) -> tuple[SearchTree, float]:
    options = dict(scene)
    answers, inject, run_seed = options.pop("answers"), options.pop("inject"), options.pop("run_seed")
    config = settings(**options)
    return run_search(new_search(new_policy(answers), config, inject=inject, run_seed=run_seed)), config.gamma


@given(SCENES)
@hypothesis_settings(max_examples=60)
def test_every_tree_keeps_the_books(scene: dict[str, object]) -> None:
    tree, gamma = _search_scene(scene)
    assert tree.stopped in {mcts.NO_DEFICIENCY, mcts.HOPELESS, mcts.SOLVED, mcts.EXHAUSTED, mcts.SIMULATION_LIMIT}
    injected = tree.nodes[0].visits - tree.samples
    assert injected in (0, 1), "every sample is one roll-out, and so is the ground truth"
    for index, node in enumerate(tree.nodes):
        below = [tree.nodes[child] for child in children(tree, index)]
        assert node.terminal == (not below)
        assert 0.0 <= node.outcome <= 1.0
        assert (node.outcome == 1.0) == bool(node.correct) or not node.terminal
        if below:
            assert node.visits == sum(child.visits for child in below)
            assert node.value == pytest.approx(sum(child.visits * child.action_value for child in below) / node.visits)
            assert len({tuple(child.step_ids) for child in below}) == len(below)
        if node.parent is not None:
            before = tree.nodes[node.parent]
            assert node.action_value == pytest.approx(node.outcome - before.outcome + gamma * node.value)
            assert node.visits >= 1


@given(SCENES)
@hypothesis_settings(max_examples=40)
def test_with_gamma_one_a_value_is_the_mean_outcome_of_the_rollouts(scene: dict[str, object]) -> None:
    tree, _ = _search_scene(scene | {"gamma": 1.0})
    ends = [node for node in tree.nodes if node.terminal]
    mean = sum(node.visits * node.outcome for node in ends) / sum(node.visits for node in ends)
    assert tree.nodes[0].value == pytest.approx(mean)


@given(SCENES)
@hypothesis_settings(max_examples=20)
def test_the_same_search_gives_the_same_tree(scene: dict[str, object]) -> None:
    assert _search_scene(scene) == _search_scene(scene)


def test_every_leaf_of_a_tree_is_a_response_of_the_policy() -> None:
    answers = [WEATHER, WRONG_UNIT, PROSE]
    tree = run_search(new_search(new_policy(answers), settings()))
    for index, node in enumerate(tree.nodes):
        if node.terminal:
            ids: list[int] = []
            position: int | None = index
            while position is not None:
                ids = tree.nodes[position].step_ids + ids
                position = tree.nodes[position].parent
            assert byte_tokenizer().decode(ids, skip_special_tokens=True) in answers


def test_a_mistake_that_waits_for_its_correction_is_not_solved() -> None:
    root = new_root()
    wrong = _grow(root, "wrong", visits=5)
    wrong.wrong_below = 5
    right = _grow(root, "right", visits=1)
    right.right_below = 1
    assert not is_solved(root, min_visits=2)
    right.visits = 2
    assert is_solved(root, min_visits=2)
    right.visits, right.terminal = 1, True
    assert is_solved(root, min_visits=2), "a right terminal is a verdict"


def test_one_correction_does_not_solve_a_tree_in_which_another_mistake_waits() -> None:
    root = new_root()
    first = _grow(root, "first", visits=8)
    _grow(first, "wrong", visits=4)
    _grow(first, "right", visits=4).right_below = 4
    first.right_below = 4
    assert is_solved(root, min_visits=2)
    second = _grow(root, "second", visits=5)
    _grow(second, "wrong", visits=4)
    waiting = _grow(second, "right", visits=1)
    second.right_below = waiting.right_below = 1
    assert not is_solved(root, min_visits=2)
    waiting.closed = True
    assert is_solved(root, min_visits=2), "a closed state cannot be visited again"


def test_two_right_ways_are_no_mistake() -> None:
    root = new_root()
    for name in ("one", "other"):
        _grow(root, name, visits=5).right_below = 5
    assert not is_solved(root, min_visits=2)
