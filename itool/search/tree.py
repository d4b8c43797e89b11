"""The search tree while it grows: nodes over token ids with their statistics, and how they become a stored `SearchTree`.

A node is a state s, reached from its parent by the step a. It knows nothing of policies, rewards or text beyond its own step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from itool import records


@dataclass(slots=True, eq=False)
class Node:
    """A state and the step that leads to it.

    `visits` is N(s): the roll-outs that pass through it. `value` is V(s), `action_value` Q(s,a) of its own step, `prior` p(a|s),
    `outcome` O(s), `confidence` C(s), `reward` R(s). `draws` counts the sampled continuations from this state on, whether asked for
    here or further up; `arrivals` those samples that chose the step itself (0: only the ground truth led here); `requests` the sampling
    requests made here. `closed`: no expansion at or below this node is possible or needed.
    """

    parent: Node | None
    step_ids: tuple[int, ...]
    text: str
    state_text: str
    depth: int
    prior: float = 1.0
    outcome: float = 0.0
    confidence: float | None = None
    reward: float = 0.0
    visits: int = 0
    value: float = 0.0
    action_value: float = 0.0
    draws: int = 0
    arrivals: int = 0
    requests: int = 0
    right_below: int = 0
    wrong_below: int = 0
    terminal: bool = False
    correct: bool | None = None
    closed: bool = False
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)

    def add(self, step_ids: tuple[int, ...], text: str, state_text: str, *, prior: float) -> Node:
        """A new child, reached by a step that this node has not yet."""
        child = self.children[step_ids] = Node(self, step_ids, text, state_text, self.depth + 1, prior)
        return child

    def lineage(self) -> list[Node]:
        """This node and its ancestors, the root last."""
        nodes = [self]
        while (parent := nodes[-1].parent) is not None:
            nodes.append(parent)
        return nodes

    def path_ids(self) -> tuple[int, ...]:
        """The token ids of all steps from the root to this state."""
        return tuple(token for node in reversed(self.lineage()) for token in node.step_ids)


def new_root() -> Node:
    """The state before the first step."""
    return Node(parent=None, step_ids=(), text="", state_text="", depth=0)


def walk(root: Node) -> Iterator[Node]:
    """Every node, parents before children, in the order in which they were added to their parent."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children.values()))


def freeze(root: Node) -> list[records.Node]:
    """The nodes as records, parents first."""
    index: dict[int, int] = {}
    stored = []
    for position, node in enumerate(walk(root)):
        index[id(node)] = position
        stored.append(
            records.Node(
                parent=None if node.parent is None else index[id(node.parent)],
                step_ids=list(node.step_ids),
                text=node.text,
                prior=node.prior,
                visits=node.visits,
                value=node.value,
                action_value=node.action_value,
                outcome=node.outcome,
                confidence=node.confidence,
                terminal=node.terminal,
                correct=node.correct,
                injected=node.parent is not None and node.arrivals == 0,
            )
        )
    return stored
