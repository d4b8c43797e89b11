"""Search many examples: blocks of trees that share the engine, in an order that does not depend on timing.

The trees of a block take each phase of a simulation together, so every request of a round waits in the engine before the first is
answered: the embedded policy then forms the same batches on every run and after every restart. A finished block is what a caller stores;
after a kill it names the examples that are done, and only the others are searched.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from itool.config import RunConfig, SearchConfig
from itool.data.chat import render_prompt, response_ids
from itool.errors import InputError, ItoolError
from itool.logs import get_logger
from itool.policy.protocol import Policy
from itool.records import Example, PreferencePair, SearchTree
from itool.search.best_of_n import best_of_n_settings, rejection_sampling_settings
from itool.search.mcts import SearchTask, TreeSearch
from itool.search.pairs import extract_pairs
from itool.search.reading import TokenReader
from itool.search.steps import Granularity

PROMPT_TOO_LONG = "prompt fills the context"
UNUSABLE = "unusable example"
"""The policy or the tokenizer refused the example with an InputError; the log names it."""

_log = get_logger(__name__)


@dataclass(slots=True)
class SearchBlock:
    """What a finished block gave: trees in the order of the examples, and the reason of each example that gave none, by its id."""

    trees: list[SearchTree] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


async def search_examples(
    policy: Policy,
    tokenizer: Any,
    examples: Sequence[Example],
    config: RunConfig,
    *,
    run_seed: int,
    iteration: int,
    done: Collection[str] = frozenset(),
) -> AsyncIterator[SearchBlock]:
    """Search the examples in blocks of `search.trees_in_flight`, leaving out those whose ids are `done` (found or dropped earlier).

    Blocks are cut from *all* examples, so that a restarted search forms the same ones. Raises DependencyError when the engine is gone;
    every other fault costs its example only and is counted under a reason.
    """
    settings = search_settings(config)
    reader = TokenReader(tokenizer)
    granularity: Granularity = settings.granularity if config.method == "mcts_dpo" else "response"
    size = config.search.trees_in_flight
    for start in range(0, len(examples), size):
        waiting = [example for example in examples[start : start + size] if example.id not in done]
        if not waiting:
            continue
        block = SearchBlock()
        searches = []
        for example in waiting:
            task = _prepare(tokenizer, example, config, block, run_seed=run_seed, iteration=iteration)
            if task is not None:
                searches.append(TreeSearch(policy, reader, task, settings, granularity))
        await _run_in_step(searches, block)
        yield block


def search_settings(config: RunConfig) -> SearchConfig:
    """The search settings that are in force under the run's method."""
    match config.method:
        case "best_of_n":
            return best_of_n_settings(config.search)
        case "rejection_sampling":
            return rejection_sampling_settings(config.search)
        case _:
            return config.search


def pairs_of(tree: SearchTree, config: RunConfig) -> tuple[list[PreferencePair], Counter[str]]:
    """The preference pairs of a tree under the run's method, and the states that gave none by reason."""
    settings = search_settings(config)
    return extract_pairs(tree, min_gap=settings.min_gap, min_visits=settings.min_visits)


def prepare_task(tokenizer: Any, example: Example, config: RunConfig, *, run_seed: int, iteration: int) -> SearchTask:
    """Everything about one example that its search needs. Raises InputError when the example has no room for an answer.

    With `data.buffer_labels: checker` the ground-truth text is not looked at, even where there is one.
    """
    prompt_ids = tuple(render_prompt(tokenizer, example))
    max_tokens = min(config.model.max_response_tokens, config.model.context_tokens - len(prompt_ids))
    ground_truth: tuple[int, ...] | None = None
    if search_settings(config).inject_ground_truth and config.data.buffer_labels == "response" and example.response is not None:
        ground_truth = tuple(response_ids(tokenizer, example))
        if len(ground_truth) > max_tokens:
            ground_truth = None
    return SearchTask(example, prompt_ids, ground_truth, max_tokens, run_seed, iteration)


def _prepare(
    tokenizer: Any, example: Example, config: RunConfig, block: SearchBlock, *, run_seed: int, iteration: int
) -> SearchTask | None:
    try:
        task = prepare_task(tokenizer, example, config, run_seed=run_seed, iteration=iteration)
    except InputError as error:
        _drop(block, example.id, UNUSABLE, error)
        return None
    if task.max_tokens < 1:
        _drop(block, example.id, PROMPT_TOO_LONG, None)
        return None
    return task


async def _run_in_step(searches: Sequence[TreeSearch], block: SearchBlock) -> None:
    """Run all searches to their ends, each phase of a simulation for all of them at once."""
    active = list(searches)
    while active:
        for phase in (TreeSearch.expand, TreeSearch.inject, TreeSearch.evaluate, _backup):
            active = await _take_together(active, phase, block)
        active = [search for search in active if search.stopped is None]
    block.trees = [search.finish() for search in searches if search.stopped is not None]


async def _backup(search: TreeSearch) -> None:
    search.backup()


async def _take_together(
    searches: list[TreeSearch], phase: Callable[[TreeSearch], Awaitable[None]], block: SearchBlock
) -> list[TreeSearch]:
    """One phase for all searches; those that survive it. The one place where a fault of any kind costs an example, not the stage."""
    outcomes = await asyncio.gather(*(phase(search) for search in searches), return_exceptions=True)
    survivors = []
    for search, fault in zip(searches, outcomes, strict=True):
        if fault is None:
            survivors.append(search)
        elif isinstance(fault, InputError):
            _drop(block, search.task.example.id, UNUSABLE, fault)
        elif isinstance(fault, ItoolError) or not isinstance(fault, Exception):
            raise fault
        else:
            _drop(block, search.task.example.id, f"unexpected {type(fault).__name__}", fault)
    return survivors


def _drop(block: SearchBlock, example_id: str, reason: str, fault: Exception | None) -> None:
    block.dropped[example_id] = reason
    _log.warning("example dropped", example_id=example_id, reason=reason, error=None if fault is None else str(fault))
