"""Preference pairs from finished trees: at each state the best and the worst step, where both are well founded.

Works on the stored `SearchTree`, so pairs can be drawn again from the artifact. Every state with two or more visited children either
gives one pair or is counted under the reason why it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from itool.records import Node, PreferencePair, SearchTree

FEW_VISITS = "too few visits"
SMALL_GAP = "value gap too small"
SAME_TEXT = "same text"
ONE_BEGINS_THE_OTHER = "one side begins the other"
NO_RIGHT_ANSWER = "no right answer below chosen"
NO_WRONG_ANSWER = "no wrong answer below rejected"


@dataclass(frozen=True, slots=True)
class Evidence:
    """How many roll-outs below a node ended right and wrong."""

    right: int
    wrong: int


def extract_pairs(tree: SearchTree, *, min_gap: float, min_visits: int) -> tuple[list[PreferencePair], Counter[str]]:
    """The pairs of a tree, parents before children, and the states that gave none by reason."""
    children = children_of(tree)
    evidence = evidence_of(tree)
    pairs: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    for parent, siblings in enumerate(children):
        visited = [index for index in siblings if tree.nodes[index].visits > 0]
        if len(visited) < 2:
            continue
        sides = _choose_sides(tree.nodes, visited, min_visits)
        reason = FEW_VISITS if sides is None else _find_fault(tree.nodes, evidence, *sides, min_gap=min_gap)
        if sides is None or reason is not None:
            dropped[str(reason)] += 1
        else:
            pairs.append(_make_pair(tree, evidence, parent, *sides))
    return pairs, dropped


def children_of(tree: SearchTree) -> list[list[int]]:
    """The children of every node, by index."""
    children: list[list[int]] = [[] for _ in tree.nodes]
    for index, node in enumerate(tree.nodes):
        if node.parent is not None:
            children[node.parent].append(index)
    return children


def evidence_of(tree: SearchTree) -> list[Evidence]:
    """Right and wrong roll-outs below every node (its own, when terminal)."""
    right, wrong = [0] * len(tree.nodes), [0] * len(tree.nodes)
    for index in range(len(tree.nodes) - 1, -1, -1):
        node = tree.nodes[index]
        if node.terminal:
            right[index], wrong[index] = (node.visits, 0) if node.correct else (0, node.visits)
        if node.parent is not None:
            right[node.parent] += right[index]
            wrong[node.parent] += wrong[index]
    return [Evidence(*counts) for counts in zip(right, wrong, strict=True)]


def _choose_sides(nodes: Sequence[Node], siblings: Sequence[int], min_visits: int) -> tuple[int, int] | None:
    """Highest and lowest Q among the siblings with enough visits; ties go to more visits.

    A right *terminal* step may be chosen on a single visit: its value is a verdict, not an estimate, and no expansion can visit it
    again. A step that was sampled fewer than `min_visits` times is never rejected: a slip is no deficiency.
    """
    firm = [index for index in siblings if nodes[index].visits >= min_visits]
    verdicts = [index for index in siblings if nodes[index].terminal and nodes[index].correct]
    best = max({*firm, *verdicts}, key=lambda index: (_rounded(nodes[index].action_value), nodes[index].visits, -index), default=None)
    others = [index for index in firm if index != best]
    worst = min(others, key=lambda index: (_rounded(nodes[index].action_value), -nodes[index].visits, index), default=None)
    return None if best is None or worst is None else (best, worst)


def _rounded(value: float) -> float:
    """A value without the last bits of its sums: 0.9 - 0.8 is 0.1, and what is equal on paper is equal."""
    return round(value, 9)


def _find_fault(nodes: Sequence[Node], evidence: Sequence[Evidence], best: int, worst: int, *, min_gap: float) -> str | None:
    chosen, rejected = nodes[best], nodes[worst]
    gap = _rounded(chosen.action_value - rejected.action_value)
    if gap < min_gap or gap == 0.0:
        return SMALL_GAP
    if chosen.text == rejected.text:
        return SAME_TEXT
    if all(left == right for left, right in zip(chosen.step_ids, rejected.step_ids, strict=False)):
        return ONE_BEGINS_THE_OTHER
    if evidence[best].right == 0:
        return NO_RIGHT_ANSWER
    return NO_WRONG_ANSWER if evidence[worst].wrong == 0 else None


def right_ending(tree: SearchTree, evidence: Sequence[Evidence], start: int) -> list[int]:
    """Token ids that follow the step `start` to a right end: at each state the step with the most right roll-outs, then the first found."""
    children, ids, index = children_of(tree), list[int](), start
    while right := [child for child in children[index] if evidence[child].right]:
        index = max(right, key=lambda child: (evidence[child].right, -child))
        ids += tree.nodes[index].step_ids
    return ids


def _make_pair(tree: SearchTree, evidence: Sequence[Evidence], parent: int, best: int, worst: int) -> PreferencePair:
    chosen, rejected = tree.nodes[best], tree.nodes[worst]
    path = _path(tree, parent)
    return PreferencePair(
        example_id=tree.example_id,
        prompt_ids=tree.prompt_ids,
        prefix_ids=[token for index in path for token in tree.nodes[index].step_ids],
        chosen_ids=chosen.step_ids,
        rejected_ids=rejected.step_ids,
        ending_ids=right_ending(tree, evidence, best),
        chosen_value=chosen.action_value,
        rejected_value=rejected.action_value,
        chosen_visits=chosen.visits,
        rejected_visits=rejected.visits,
        chosen_correct=evidence[best].right,
        rejected_wrong=evidence[worst].wrong,
        injected=chosen.injected,
        node_path=path,
    )


def _path(tree: SearchTree, index: int) -> list[int]:
    """Indices of the nodes from the root's child down to `index`; empty for the root."""
    path: list[int] = []
    while (parent := tree.nodes[index].parent) is not None:
        path.append(index)
        index = parent
    return path[::-1]
