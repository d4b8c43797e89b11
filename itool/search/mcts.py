"""Step-wise Monte Carlo tree search for one example. Eq. (5), (8), (9), arXiv 2501.09766v1.

One simulation:

    select      walk down by PUCT to a state that has fewer than `width` continuations
    expand      sample complete continuations of it, in one request: the first step of each is a child, the rest its roll-out, and both
                stay in the tree (steps with equal token ids merge, so samples that agree share their nodes)
    evaluate    O(s) of each new state, and C(s) where self-evaluation is on
    backup      along each roll-out from its end to the root

N(s) counts the roll-outs through s, so N(s) is the sum over its children, and V(s) is the mean return of its roll-outs. A search only
knows its policy through the protocol; it touches no file, no clock and no random state of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from itool.config import SearchConfig
from itool.policy.protocol import Policy
from itool.records import Example, SearchTree
from itool.search.reading import TokenReader
from itool.search.reward import partial_outcome, self_evaluation, state_reward, step_reward, terminal_outcome
from itool.search.seeds import draw_seed
from itool.search.steps import Granularity, split_steps
from itool.search.tree import Node, freeze, new_root, walk

NO_DEFICIENCY = "no deficiency"
"""Every sample of the first expansion is right: there is nothing to correct."""
HOPELESS = "hopeless"
"""No sample has anything right and there is no ground truth to inject: nothing guides the search."""
SOLVED = "solved"
"""A mistake stands beside its correction, both visited often enough, and no further mistake waits for its correction to be visited."""
EXHAUSTED = "exhausted"
"""No state is left to expand: all are terminal, below the depth limit, or free of mistakes."""
SIMULATION_LIMIT = "simulation limit"


def puct(q: float, prior: float, parent_visits: int, visits: int, c: float) -> float:
    """Selection score of a child. Eq. (5), arXiv 2501.09766v1: Q(s,a) + c * p(a|s) * sqrt(N(s)) / (1 + N(s'))."""
    return q + c * prior * math.sqrt(parent_visits) / (1 + visits)


def action_value(reward: float, value: float, gamma: float) -> float:
    """Q(s,a) = r(s,a) + gamma * V(s'). Eq. (8), arXiv 2501.09766v1."""
    return reward + gamma * value


def state_value(children: Iterable[tuple[int, float]]) -> float:
    """V(s) = sum_a N(s') Q(s,a) / sum_a N(s') over (N(s'), Q(s,a)). Eq. (9), arXiv 2501.09766v1. A terminal state has none: 0."""
    total = weighted = 0.0
    for visits, q in children:
        total += visits
        weighted += visits * q
    return weighted / total if total else 0.0


def step_prior(logprobs: Sequence[float]) -> float:
    """p(a|s): the probability of the step's tokens under the policy at temperature 1, exp of the sum of their log-probabilities."""
    return math.exp(sum(logprobs))


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What one search is about. `ground_truth_ids` (end of turn included) is None where it must not, or cannot, be injected."""

    example: Example
    prompt_ids: tuple[int, ...]
    ground_truth_ids: tuple[int, ...] | None
    max_tokens: int
    run_seed: int
    iteration: int


async def search_tree(
    policy: Policy, reader: TokenReader, task: SearchTask, config: SearchConfig, *, granularity: Granularity
) -> SearchTree:
    """Search one example to its end. `granularity` is the configured one for mcts_dpo, else `response`."""
    search = TreeSearch(policy, reader, task, config, granularity)
    while search.stopped is None:
        await search.simulate()
    return search.finish()


class TreeSearch:
    """One growing tree: `simulate` until `stopped` says why no more, then `finish`."""

    def __init__(self, policy: Policy, reader: TokenReader, task: SearchTask, config: SearchConfig, granularity: Granularity) -> None:
        self.task = task
        self.root = new_root()
        self.stopped: str | None = None
        self.simulations = 0
        self.samples = 0
        self.correct_samples = 0
        self.sampled_tokens = 0
        self._policy = policy
        self._reader = reader
        self._config = config
        self._granularity: Granularity = granularity
        self._new: list[Node] = [self.root]
        self._ends: list[Node] = []
        self._rollouts: dict[tuple[Node, tuple[int, ...]], Node] = {}

    async def simulate(self) -> None:
        """One select-expand-evaluate-backup pass."""
        await self._expand(select(self.root, self._config.c_puct, self._width))
        await self._inject()
        await self._evaluate()
        for end in self._ends:
            self._backup_rollout(end)
        self._ends = []
        self.stopped = self._stop_reason()

    def finish(self) -> SearchTree:
        """The tree as a record."""
        assert self.stopped is not None
        return SearchTree(
            example_id=self.task.example.id,
            prompt_ids=list(self.task.prompt_ids),
            nodes=freeze(self.root),
            stopped=self.stopped,
            simulations=self.simulations,
            sampled_tokens=self.sampled_tokens,
            samples=self.samples,
            correct_samples=self.correct_samples,
        )

    async def _expand(self, leaf: Node) -> None:
        """Sample complete continuations of a state: its children and their roll-outs in one request."""
        state_ids = leaf.path_ids()
        samples = await self._policy.sample(
            [*self.task.prompt_ids, *state_ids],
            count=self._width(leaf),
            max_tokens=self.task.max_tokens - len(state_ids),
            temperature=self._config.temperature,
            seed=draw_seed(self.task.run_seed, self.task.iteration, self.task.example.id, state_ids, leaf.requests),
        )
        leaf.requests += 1
        self.simulations += 1
        for sample in samples:
            self.samples += 1
            self.sampled_tokens += len(sample.token_ids)
            if sample.token_ids:
                end = self._insert(leaf, state_ids, sample.token_ids, sample.logprobs, finished=sample.finished)
                self.correct_samples += bool(end.correct)

    async def _inject(self) -> None:
        """After the first expansion, unless every sample is right, add the ground truth as one more roll-out from the root.

        The chosen side must be able to be right. Its steps carry the policy's own probabilities as priors.
        """
        ids = self.task.ground_truth_ids
        if self.simulations != 1 or ids is None or self.correct_samples == self.samples:
            return
        logprobs = await self._policy.logprobs(self.task.prompt_ids, ids)
        self._insert(self.root, (), ids, logprobs, finished=True, injected=True)

    async def _evaluate(self) -> None:
        """R(s) of the new states. O(s) is known since they were inserted; C(s) is asked for here, all at once."""
        weight = self._config.confidence_weight
        if weight > 0.0:
            questions = (self_evaluation(self._policy, self._reader.tokenizer, self.task.example, node.state_text) for node in self._new)
            for node, confidence in zip(self._new, await asyncio.gather(*questions), strict=True):
                node.confidence = confidence
        for node in self._new:
            node.reward = state_reward(node.outcome, node.confidence, weight)
        self._new = []

    def _width(self, node: Node) -> int:
        return self._config.width if node.parent else self._config.root_samples

    def _insert(
        self,
        leaf: Node,
        prefix_ids: Sequence[int],
        ids: tuple[int, ...],
        logprobs: Sequence[float],
        *,
        finished: bool,
        injected: bool = False,
    ) -> Node:
        """Add one roll-out below `leaf`, sharing the steps that are there already; its terminal node."""
        end = self._rollouts.get((leaf, ids))
        if end is None:
            end = self._rollouts[leaf, ids] = self._grow(leaf, prefix_ids, ids, logprobs, finished=finished)
        for node in end.lineage():
            node.draws += not injected
            if node is leaf:
                break
            node.arrivals += not injected
        self._ends.append(end)
        return end

    def _grow(self, leaf: Node, prefix_ids: Sequence[int], ids: Sequence[int], logprobs: Sequence[float], *, finished: bool) -> Node:
        """The chain of steps below `leaf` that spells `ids`; what is missing of it is added and scored."""
        node = leaf
        start = 0
        steps = split_steps(self._reader, prefix_ids, ids, granularity=self._granularity, tools=self.task.example.tools)
        for position, step in enumerate(steps, start=1):
            end = start + len(step.ids)
            child = node.children.get(step.ids)
            if child is None:
                child = node.add(step.ids, step.text, step.state_text, prior=step_prior(logprobs[start:end]))
                child.terminal = position == len(steps)
                self._score(child, finished)
                self._new.append(child)
            node = child
            start = end
        return node

    def _score(self, node: Node, finished: bool) -> None:
        if node.terminal:
            node.outcome, node.correct = terminal_outcome(node.state_text, finished, self.task.example)
        else:
            node.outcome = partial_outcome(node.state_text, self.task.example)

    def _backup_rollout(self, end: Node) -> None:
        """Eq. (8)-(9) from the end of one roll-out to the root."""
        gamma = self._config.gamma
        for node in end.lineage():
            node.visits += 1
            node.right_below += end.correct is True
            node.wrong_below += end.correct is False
            node.value = state_value((child.visits, child.action_value) for child in node.children.values())
            node.closed = self._is_closed(node)
            if node.parent is not None:
                node.action_value = action_value(step_reward(node.parent.reward, node.reward), node.value, gamma)

    def _is_closed(self, node: Node) -> bool:
        """Whether nothing is left to expand here: terminal, too deep, free of mistakes, or all children closed."""
        if node.terminal or node.depth > self._config.depth_limit:
            return True
        return node.draws >= self._width(node) and (node.wrong_below == 0 or all(child.closed for child in node.children.values()))

    def _stop_reason(self) -> str | None:
        if self.samples and self.correct_samples == self.samples:
            return NO_DEFICIENCY
        if self.root.right_below == 0 and all(node.outcome == 0.0 for node in walk(self.root)):
            return HOPELESS
        if is_solved(self.root, self._config.min_visits):
            return SOLVED
        if self.root.closed:
            return EXHAUSTED
        return SIMULATION_LIMIT if self.simulations >= self._config.simulations else None


def select(root: Node, c: float, width: Callable[[Node], int]) -> Node:
    """Walk down by PUCT, past every state that has its `width(state)` sampled continuations, and never into a closed one.

    A roll-out that passed through a state is a draw from the policy in that state, so it counts as if it had been asked for there.
    Ties go to the child that was found first. The root must not be closed.
    """
    node = root
    while node.draws >= width(node):
        visits = node.visits
        node = max(
            (child for child in node.children.values() if not child.closed),
            key=lambda child: puct(child.action_value, child.prior, visits, child.visits, c),
        )
    return node


def is_solved(root: Node, min_visits: int) -> bool:
    """Whether some mistake stands beside a correction, both with enough visits, and no mistake still waits for its correction's visits."""
    found = False
    for node in walk(root):
        children = node.children.values()
        if len(children) < 2 or not any(child.right_below == 0 and child.visits >= min_visits for child in children):
            continue
        right = [child for child in children if child.right_below]
        if any(child.terminal or child.visits >= min_visits for child in right):
            found = True
        elif any(not child.closed for child in right):
            return False
    return found
