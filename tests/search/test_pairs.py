from __future__ import annotations

from collections import Counter

import pytest

from itool.records import Node, SearchTree
from itool.search import pairs
from itool.search.best_of_n import accept_samples, best_of_n_settings, rejection_sampling_settings
from itool.search.pairs import extract_pairs
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.search.scenes import OTHER_ORDER, PROSE, WEATHER, WRONG_UNIT, new_policy, new_search, run_search, settings


def _node(
    parent: int | None, step: str, visits: int, q: float, *, correct: bool | None = None, injected: bool = False, prior: float = 0.5
) -> Node:
    return Node(
        parent=parent, step_ids=list(step.encode()), text=step, prior=0.5, visits=visits, value=0.0, action_value=q, outcome=0.0,
        terminal=correct is not None, correct=correct, injected=injected,
    )  # fmt: skip


def _tree(*nodes: Node) -> SearchTree:
    root = _node(None, "", 10, 0.0)
    return SearchTree(
        example_id="e",
        prompt_ids=[1, 2],
        nodes=[root, *nodes],
        stopped="solved",
        simulations=1,
        sampled_tokens=9,
        samples=9,
        correct_samples=1,
    )


def _extract(*nodes: Node, min_gap: float = 0.1, min_visits: int = 2) -> tuple[list[tuple[str, str]], Counter[str]]:
    found, dropped = extract_pairs(_tree(*nodes), min_gap=min_gap, min_visits=min_visits)
    return [(bytes(pair.chosen_ids).decode(), bytes(pair.rejected_ids).decode()) for pair in found], dropped


def test_best_and_worst_step_make_a_pair() -> None:
    nodes = [_node(0, "a", 4, 0.9, correct=True), _node(0, "b", 3, 0.5, correct=False), _node(0, "c", 3, 0.1, correct=False)]
    assert _extract(*nodes) == ([("a", "c")], Counter())


def test_a_pair_carries_its_state_and_its_evidence() -> None:
    [pair], _ = extract_pairs(
        _tree(
            _node(0, "f(", 10, 0.4),
            _node(1, "x=1", 6, 0.8),
            _node(1, "x=2", 4, 0.0, correct=False),
            _node(2, ")", 5, 0.5, correct=True),
            _node(2, "]", 1, 0.0, correct=False),
        ),
        min_gap=0.1,
        min_visits=2,
    )
    assert (pair.prompt_ids, pair.prefix_ids, pair.node_path) == ([1, 2], list(b"f("), [1])
    assert (pair.chosen_ids, pair.rejected_ids) == (list(b"x=1"), list(b"x=2"))
    assert (pair.chosen_value, pair.rejected_value) == (0.8, 0.0)
    assert (pair.chosen_visits, pair.rejected_visits, pair.chosen_correct, pair.rejected_wrong) == (6, 4, 5, 4)


def test_a_state_with_one_child_decides_nothing_and_is_not_counted() -> None:
    assert _extract(_node(0, "a", 4, 0.9, correct=True)) == ([], Counter())


def test_the_smallest_gap_that_is_asked_for_is_enough_and_equal_values_never_are() -> None:
    nodes = [_node(0, "a", 4, 0.75, correct=True), _node(0, "b", 4, 0.25, correct=False)]
    assert _extract(*nodes, min_gap=0.5) == ([("a", "b")], Counter())
    equal = [_node(0, "a", 4, 0.5, correct=True), _node(0, "b", 4, 0.5, correct=False)]
    assert _extract(*equal, min_gap=0.0) == ([], Counter({pairs.SMALL_GAP: 1}))


def test_rounding_of_sums_decides_neither_a_gap_nor_a_tie() -> None:
    short = [_node(0, "a", 4, (0.9 - 0.8) + (1.0 - 0.9), correct=True), _node(0, "b", 4, 0.9 - 0.8, correct=False)]
    assert short[0].action_value - short[1].action_value < 0.1, "in floats"
    assert _extract(*short, min_gap=0.1) == ([("a", "b")], Counter())
    equal = [_node(0, "a", 2, 1 / 3 + (1.0 - 2 / 3), correct=True), _node(0, "b", 3, 2 / 3, correct=True)]
    assert equal[0].action_value > equal[1].action_value, "in floats"
    assert _extract(*equal, _node(0, "c", 3, 0.0, correct=False))[0] == [("b", "c")]
    assert _extract(*equal, min_gap=0.0) == ([], Counter({pairs.SMALL_GAP: 1}))


@pytest.mark.parametrize(("visits", "rejected"), [((2, 5, 5), "c"), ((4, 4, 4), "b")])
def test_of_equally_bad_steps_the_most_visited_is_rejected_then_the_first(visits: tuple[int, ...], rejected: str) -> None:
    bad = [_node(0, name, count, 0.1, correct=False) for name, count in zip("bcd", visits, strict=True)]
    assert _extract(_node(0, "a", 4, 0.9, correct=True), *bad)[0] == [("a", rejected)]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([_node(0, "a", 4, 0.5, correct=True), _node(0, "b", 4, 0.45, correct=False)], pairs.SMALL_GAP),
        ([_node(0, "a", 4, 1.0, correct=True), _node(0, "b", 4, 1.0, correct=True)], pairs.SMALL_GAP),
        ([_node(0, "a", 4, 1.0, correct=True), _node(0, "b", 1, 0.0, correct=False)], pairs.FEW_VISITS),
        ([_node(0, "a", 1, 1.0), _node(0, "b", 4, 0.0, correct=False), _node(1, "c", 1, 1.0, correct=True)], pairs.FEW_VISITS),
        ([_node(0, "a", 4, 0.8, correct=False), _node(0, "b", 4, 0.1, correct=False)], pairs.NO_RIGHT_ANSWER),
        ([_node(0, "a", 4, 0.8, correct=True), _node(0, "b", 4, 0.1, correct=True)], pairs.NO_WRONG_ANSWER),
        ([_node(0, "ab", 4, 0.8, correct=True), _node(0, "a", 4, 0.1, correct=False)], pairs.ONE_BEGINS_THE_OTHER),
    ],
)
def test_a_state_without_a_pair_is_counted_by_reason(nodes: list[Node], reason: str) -> None:
    assert _extract(*nodes) == ([], Counter({reason: 1}))


def test_two_tokenisations_of_one_text_are_no_preference() -> None:
    left = _node(0, "a", 4, 1.0, correct=True)
    right = _node(0, "b", 4, 0.0, correct=False).model_copy(update={"text": "a"})
    assert _extract(left, right) == ([], Counter({pairs.SAME_TEXT: 1}))


def test_a_step_sampled_once_is_neither_chosen_nor_rejected() -> None:
    nodes = [
        _node(0, "slip", 1, 0.0, correct=False), _node(0, "luck", 1, 1.0), _node(0, "good", 3, 0.7), _node(0, "bad", 3, 0.2, correct=False),
        _node(2, "x", 1, 0.0, correct=True), _node(3, "y", 3, 0.0, correct=True),
    ]  # fmt: skip
    assert _extract(*nodes)[0] == [("good", "bad")]


def test_a_right_terminal_is_chosen_on_one_visit() -> None:
    nodes = [_node(0, "gold", 1, 1.0, correct=True, injected=True), _node(0, "bad", 5, 0.2, correct=False)]
    assert _extract(*nodes)[0] == [("gold", "bad")]


def test_a_sampled_right_answer_is_preferred_to_an_injected_one() -> None:
    nodes = [
        _node(0, "gold", 1, 1.0, correct=True, injected=True),
        _node(0, "mine", 2, 1.0, correct=True),
        _node(0, "bad", 5, 0.2, correct=False),
    ]  # fmt: skip
    assert _extract(*nodes)[0] == [("mine", "bad")]


def test_a_search_finds_the_wrong_argument() -> None:
    tree = run_search(new_search(new_policy([WEATHER, WRONG_UNIT]), settings(root_samples=12)))
    [pair], dropped = extract_pairs(tree, min_gap=0.1, min_visits=2)
    decode = byte_tokenizer().decode
    assert "celsius" in decode(pair.chosen_ids, skip_special_tokens=True)
    assert "kelvin" in decode(pair.rejected_ids, skip_special_tokens=True)
    assert "unit" not in decode(pair.prefix_ids, skip_special_tokens=True)
    assert not dropped


def test_two_right_orders_make_no_pair() -> None:
    tree = run_search(new_search(new_policy([WEATHER, OTHER_ORDER, PROSE]), settings(root_samples=30)))
    [pair], _ = extract_pairs(tree, min_gap=0.1, min_visits=2)
    assert PROSE.startswith(byte_tokenizer().decode(pair.rejected_ids, skip_special_tokens=True))
    both = [child for child in tree.nodes if child.parent == 0 and child.action_value == 1.0]
    assert len(both) == 2


def test_best_of_n_pairs_whole_responses_at_the_price_of_n_samples() -> None:
    config = best_of_n_settings(settings(best_of=16))
    policy = new_policy([WEATHER, WRONG_UNIT])
    tree = run_search(new_search(policy, config, granularity="response"))
    assert (tree.samples, len(policy.requests)) == (16, 1)
    [pair], _ = extract_pairs(tree, min_gap=config.min_gap, min_visits=config.min_visits)
    decode = byte_tokenizer().decode
    assert decode(pair.chosen_ids, skip_special_tokens=True) == WEATHER
    assert decode(pair.rejected_ids, skip_special_tokens=True) == WRONG_UNIT
    assert pair.prefix_ids == []
    assert not pair.injected


def test_rejection_sampling_keeps_what_was_sampled_and_is_right() -> None:
    config = rejection_sampling_settings(settings(best_of=16))
    assert not config.inject_ground_truth
    policy = new_policy([WEATHER, OTHER_ORDER, WRONG_UNIT])
    tree = run_search(new_search(policy, config, inject=False, granularity="response"))
    accepted = accept_samples(tree)
    texts = {byte_tokenizer().decode(sample.response_ids, skip_special_tokens=True) for sample in accepted}
    assert texts == {WEATHER, OTHER_ORDER}
    assert len(accepted) == len(texts) < tree.correct_samples, "each once"


def test_an_injected_answer_is_not_accepted() -> None:
    tree = run_search(new_search(new_policy([WRONG_UNIT]), best_of_n_settings(settings()), granularity="response"))
    assert any(node.correct for node in tree.nodes)
    assert accept_samples(tree) == []


def test_a_pair_knows_how_its_chosen_step_ends_right() -> None:
    """Below `x=1`, `,y=1` ended right twice, `,y=2` three times and `)` never; after `,y=2`, `)]` once and `) ]` twice."""
    [pair, *_], _ = extract_pairs(
        _tree(
            _node(0, "x=1", 8, 0.6),
            _node(0, "x=2", 2, 0.0, correct=False),
            _node(1, ",y=1", 2, 1.0),
            _node(1, ",y=2", 3, 1.0),
            _node(1, ")", 3, 0.0, correct=False),
            _node(3, ")", 2, 1.0, correct=True),
            _node(4, ")]", 1, 1.0, correct=True),
            _node(4, ") ]", 2, 1.0, correct=True),
        ),
        min_gap=0.1,
        min_visits=2,
    )
    assert (bytes(pair.chosen_ids), bytes(pair.ending_ids)) == (b"x=1", b",y=2) ]")


def test_of_two_endings_that_were_right_as_often_the_first_found_is_learned() -> None:
    sides = [_node(0, "x=1", 4, 1.0), _node(0, "x=2", 3, 0.0, correct=False)]
    [pair], _ = extract_pairs(
        _tree(*sides, _node(1, ")", 2, 1.0, correct=True), _node(1, " )", 2, 1.0, correct=True)), min_gap=0.1, min_visits=2
    )
    assert bytes(pair.ending_ids) == b")"


def test_a_chosen_step_that_ends_the_response_has_no_ending() -> None:
    [pair], _ = extract_pairs(_tree(_node(0, "a", 4, 1.0, correct=True), _node(0, "b", 3, 0.0, correct=False)), min_gap=0.1, min_visits=2)
    assert pair.ending_ids == []
