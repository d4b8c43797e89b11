"""What the tree explorer of report.html shows: some search trees of every iteration, their examples and the pairs they gave. Pure.

Token ids stay behind; a page holds at most `limit` trees per iteration (trees with pairs first, a quarter kept for those without) and
`MAX_NODES` nodes per tree, the most visited ones. How much was left out is part of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from itool.data.toolcall import render_calls
from itool.evaluate.report_inputs import ReportInputs
from itool.evaluate.report_schema import Part
from itool.records import Example, Node, PreferencePair, SearchTree

TREES_PER_ITERATION = 40
MAX_NODES = 300


class ShownPair(Part):
    """A preference pair by node index; `parent` is None when the state is no node of its own."""

    parent: int | None
    chosen: int
    rejected: int
    gap: float
    chosen_visits: int
    rejected_visits: int
    injected: bool


class ShownTree(Part):
    """A tree as the page needs it. A node is [parent, text, p, N, Q, O, C, terminal, correct, injected]."""

    example_id: str
    stopped: str
    simulations: int
    samples: int
    correct_samples: int
    sampled_tokens: int
    nodes: list[list[Any]]
    nodes_left_out: int
    pairs: list[ShownPair]


class ShownIteration(Part):
    """The trees of one iteration that the page holds, and how many more were searched."""

    iteration: int
    trees: list[ShownTree]
    trees_left_out: int


class ShownExample(Part):
    """What a tree was searched for."""

    messages: list[tuple[str, str]]
    tools: list[dict[str, Any]]
    answer: str
    difficulty: str | None


class Explorer(Part):
    """Everything that the explorer can show."""

    iterations: list[ShownIteration]
    examples: dict[str, ShownExample]


def build_explorer(inputs: ReportInputs, *, limit: int = TREES_PER_ITERATION) -> Explorer:
    """Choose the trees, at most `limit` per iteration, and gather what is needed to read them."""
    iterations = [_shown_iteration(k, trees, inputs.pairs.get(k, []), limit) for k, trees in sorted(inputs.trees.items()) if trees]
    wanted = dict.fromkeys(tree.example_id for part in iterations for tree in part.trees)
    return Explorer(
        iterations=iterations,
        examples={name: _shown_example(inputs.examples[name]) for name in wanted if name in inputs.examples},
    )


def locate_pair(paths: Mapping[tuple[int, ...], int], pair: PreferencePair) -> tuple[int | None, int, int] | None:
    """(state, chosen, rejected) as node indices, found by token ids; None when the tree does not hold both sides.

    A side may be longer than one step (complete samples, best-of-n): then the deepest node on its way stands for it.
    """
    prefix = tuple(pair.prefix_ids)
    chosen, rejected = (_deepest(paths, prefix, side) for side in (pair.chosen_ids, pair.rejected_ids))
    if chosen is None or rejected is None or chosen == rejected:
        return None
    return paths.get(prefix), chosen, rejected


def node_paths(nodes: Sequence[Node]) -> dict[tuple[int, ...], int]:
    """Token ids from the root to a node -> its index; the first of equals."""
    by_index: list[tuple[int, ...]] = []
    for node in nodes:
        above = by_index[node.parent] if node.parent is not None else ()
        by_index.append((*above, *node.step_ids))
    paths: dict[tuple[int, ...], int] = {}
    for index, path in enumerate(by_index):
        paths.setdefault(path, index)
    return paths


def most_visited(nodes: Sequence[Node], needed: set[int], limit: int = MAX_NODES) -> list[int]:
    """Indices of at most about `limit` nodes: the needed ones, then by visits; a kept node's ancestors are kept."""
    kept: set[int] = set()
    order = [*sorted(needed), *sorted(range(len(nodes)), key=lambda i: (-nodes[i].visits, i))]
    for index in order:
        if len(kept) >= limit and index not in needed:
            break
        step: int | None = index
        while step is not None and step not in kept:
            kept.add(step)
            step = nodes[step].parent
    return sorted(kept)


def _deepest(paths: Mapping[tuple[int, ...], int], prefix: tuple[int, ...], side: Sequence[int]) -> int | None:
    for length in range(len(side), 0, -1):
        index = paths.get((*prefix, *side[:length]))
        if index is not None:
            return index
    return None


def _shown_iteration(iteration: int, trees: Sequence[SearchTree], pairs: Sequence[PreferencePair], limit: int) -> ShownIteration:
    by_example: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_example.setdefault(pair.example_id, []).append(pair)
    fruitful = [tree for tree in trees if tree.example_id in by_example]
    barren = [tree for tree in trees if tree.example_id not in by_example]
    room = limit - min(len(barren), limit // 4)
    chosen = fruitful[:room]
    chosen += barren[: limit - len(chosen)]
    return ShownIteration(
        iteration=iteration,
        trees=[_shown_tree(tree, by_example.get(tree.example_id, [])) for tree in chosen],
        trees_left_out=len(trees) - len(chosen),
    )


def _shown_tree(tree: SearchTree, pairs: Sequence[PreferencePair]) -> ShownTree:
    paths = node_paths(tree.nodes)
    found = [(pair, place) for pair in pairs if (place := locate_pair(paths, pair)) is not None]
    kept = most_visited(tree.nodes, {index for _, place in found for index in place if index is not None})
    new = {old: index for index, old in enumerate(kept)}
    return ShownTree(
        example_id=tree.example_id,
        stopped=tree.stopped,
        simulations=tree.simulations,
        samples=tree.samples,
        correct_samples=tree.correct_samples,
        sampled_tokens=tree.sampled_tokens,
        nodes=[_shown_node(tree.nodes[old], new) for old in kept],
        nodes_left_out=len(tree.nodes) - len(kept),
        pairs=[_shown_pair(pair, place, new) for pair, place in found],
    )


def _shown_node(node: Node, new: Mapping[int, int]) -> list[Any]:
    parent = None if node.parent is None else new[node.parent]
    confidence = None if node.confidence is None else round(node.confidence, 4)
    figures = [round(node.prior, 4), node.visits, round(node.action_value, 4), round(node.outcome, 4), confidence]
    return [parent, node.text, *figures, node.terminal, node.correct, node.injected]


def _shown_pair(pair: PreferencePair, place: tuple[int | None, int, int], new: Mapping[int, int]) -> ShownPair:
    state, chosen, rejected = place
    return ShownPair(
        parent=None if state is None else new[state],
        chosen=new[chosen],
        rejected=new[rejected],
        gap=round(pair.chosen_value - pair.rejected_value, 4),
        chosen_visits=pair.chosen_visits,
        rejected_visits=pair.rejected_visits,
        injected=pair.injected,
    )


def _shown_example(example: Example) -> ShownExample:
    return ShownExample(
        messages=[(message.role, message.content) for message in example.messages],
        tools=[tool.model_dump(mode="json") for tool in example.tools],
        answer=_shown_answer(example),
        difficulty=example.difficulty,
    )


def _shown_answer(example: Example) -> str:
    if example.response is not None:
        return example.response
    return render_calls(example.calls) if example.calls else "text, no call"
