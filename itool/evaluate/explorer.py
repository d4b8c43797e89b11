"""What the tree explorer of report.html shows: the search trees of every iteration, their examples and the pairs they gave. Pure.

Token ids stay behind. A page holds every tree whole while they fit into `EXPLORER_BYTES`. Where they do not, a tree is cut to its
`MAX_NODES` most visited nodes, and where that is not enough the page takes the iterations in turn, three trees with pairs and one without.
How much was left out is part of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

from itool.data.toolcall import render_calls
from itool.evaluate.report_inputs import ReportInputs
from itool.evaluate.report_schema import Part
from itool.records import Example, Node, PreferencePair, SearchTree, Tool

EXPLORER_BYTES = 15_000_000
"""About so much JSON a browser reads without a pause that one notices; the rest of the page is some 0.1 MB."""
MAX_NODES = 300
DIGITS = 3
"""Decimals of a figure; the page prints two."""
TERMINAL, CORRECT, INJECTED = 1, 2, 4


class ShownPair(Part):
    """A preference pair by node index; `parent` is the state."""

    parent: int
    chosen: int
    rejected: int
    gap: float
    chosen_visits: int
    rejected_visits: int
    injected: bool


class ShownTree(Part):
    """A tree as the page needs it. A node is [parent, text, p, N, Q, O, C, marks]; marks are a sum of the constants above."""

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
    """What a tree was searched for; tools by their place in `Explorer.tools`."""

    messages: list[tuple[str, str]]
    tools: list[int]
    answer: str
    difficulty: str | None


class Explorer(Part):
    """Everything that the explorer can show. Examples share their tools, so these stand once."""

    iterations: list[ShownIteration]
    examples: dict[str, ShownExample]
    tools: list[dict[str, Any]]


class _Candidate(NamedTuple):
    """A tree that the page may hold, with the pairs that it gave."""

    iteration: int
    tree: SearchTree
    pairs: Sequence[PreferencePair]


@dataclass
class _Page:
    """What fits into a page, tree by tree."""

    known: Mapping[str, Example]
    limit_bytes: int
    max_nodes: int | None
    trees: dict[int, list[ShownTree]] = field(default_factory=dict)
    examples: dict[str, ShownExample] = field(default_factory=dict)
    tools: dict[str, int] = field(default_factory=dict)
    """A tool as JSON -> its place."""
    taken_bytes: int = 0

    def add(self, candidate: _Candidate) -> bool:
        """Take a tree, and its example when that is new. Returns False, taking neither, when they do not fit: the page is full."""
        tree = _shown_tree(candidate.tree, candidate.pairs, self.max_nodes)
        example = self.known.get(tree.example_id)
        new = {} if example is None or tree.example_id in self.examples else {tree.example_id: self._shown_example(example)}
        self.taken_bytes += sum(len(part.model_dump_json().encode()) for part in (tree, *new.values()))
        if self.taken_bytes > self.limit_bytes:
            return False
        self.examples.update(new)
        self.trees.setdefault(candidate.iteration, []).append(tree)
        return True

    def _shown_example(self, example: Example) -> ShownExample:
        return ShownExample(
            messages=[(message.role, message.content) for message in example.messages],
            tools=[self._place(tool) for tool in example.tools],
            answer=_shown_answer(example),
            difficulty=example.difficulty,
        )

    def _place(self, tool: Tool) -> int:
        """Where the tool stands among the page's."""
        text = tool.model_dump_json()
        if text not in self.tools:
            self.tools[text] = len(self.tools)
            self.taken_bytes += len(text.encode())
        return self.tools[text]


def build_explorer(inputs: ReportInputs, *, limit_bytes: int = EXPLORER_BYTES) -> Explorer:
    """Choose the trees that fit into about `limit_bytes` of JSON, and gather what is needed to read them."""
    candidates = _by_interest(inputs)
    for max_nodes in (None, MAX_NODES):
        page = _Page(inputs.examples, limit_bytes, max_nodes)
        if all(page.add(candidate) for candidate in candidates):  # the first that does not fit ends it
            break
    return Explorer(
        iterations=[_shown_iteration(k, page.trees.get(k, []), len(trees)) for k, trees in sorted(inputs.trees.items()) if trees],
        examples=page.examples,
        tools=[json.loads(tool) for tool in page.tools],
    )


def locate_pair(nodes: Sequence[Node], pair: PreferencePair) -> tuple[int, int, int]:
    """(state, chosen, rejected) as node indices: the end of the pair's path, and the two of its children that the pair is about."""
    state = pair.node_path[-1] if pair.node_path else 0
    children = {tuple(node.step_ids): index for index, node in enumerate(nodes) if node.parent == state}
    return state, children[tuple(pair.chosen_ids)], children[tuple(pair.rejected_ids)]


def most_visited(nodes: Sequence[Node], needed: set[int], limit: int) -> list[int]:
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


def _by_interest(inputs: ReportInputs) -> list[_Candidate]:
    """Every tree in the order in which a page takes them."""
    queues = [_in_turn(k, trees, inputs.pairs.get(k, [])) for k, trees in sorted(inputs.trees.items())]
    return [candidate for row in zip_longest(*queues) for candidate in row if candidate is not None]


def _in_turn(iteration: int, trees: Sequence[SearchTree], pairs: Sequence[PreferencePair]) -> list[_Candidate]:
    """Trees of one iteration: after three with pairs one without, each kind in the order of the search."""
    by_example: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_example.setdefault(pair.example_id, []).append(pair)
    candidates = [_Candidate(iteration, tree, by_example.get(tree.example_id, [])) for tree in trees]
    fruitful = [(place // 3, candidate) for place, candidate in enumerate(c for c in candidates if c.pairs)]
    barren = [(place, candidate) for place, candidate in enumerate(c for c in candidates if not c.pairs)]
    return [candidate for _, candidate in sorted(fruitful + barren, key=lambda item: item[0])]


def _shown_iteration(iteration: int, trees: Sequence[ShownTree], searched: int) -> ShownIteration:
    """Those with pairs first."""
    return ShownIteration(iteration=iteration, trees=sorted(trees, key=lambda tree: not tree.pairs), trees_left_out=searched - len(trees))


def _shown_tree(tree: SearchTree, pairs: Sequence[PreferencePair], max_nodes: int | None) -> ShownTree:
    places = [locate_pair(tree.nodes, pair) for pair in pairs]
    needed = {index for place in places for index in place}
    kept = list(range(len(tree.nodes))) if max_nodes is None else most_visited(tree.nodes, needed, max_nodes)
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
        pairs=[_shown_pair(pair, place, new) for pair, place in zip(pairs, places, strict=True)],
    )


def _shown_node(node: Node, new: Mapping[int, int]) -> list[Any]:
    parent = None if node.parent is None else new[node.parent]
    confidence = None if node.confidence is None else round(node.confidence, DIGITS)
    figures = [round(node.prior, DIGITS), node.visits, round(node.action_value, DIGITS), round(node.outcome, DIGITS), confidence]
    marks = TERMINAL * node.terminal + CORRECT * bool(node.correct) + INJECTED * node.injected
    return [parent, node.text, *figures, marks]


def _shown_pair(pair: PreferencePair, place: tuple[int, int, int], new: Mapping[int, int]) -> ShownPair:
    state, chosen, rejected = place
    return ShownPair(
        parent=new[state],
        chosen=new[chosen],
        rejected=new[rejected],
        gap=round(pair.chosen_value - pair.rejected_value, DIGITS),
        chosen_visits=pair.chosen_visits,
        rejected_visits=pair.rejected_visits,
        injected=pair.injected,
    )


def _shown_answer(example: Example) -> str:
    if example.response is not None:
        return example.response
    return render_calls(example.calls) if example.calls else "text, no call"
