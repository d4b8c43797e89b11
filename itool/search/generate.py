"""Search many examples: blocks of trees that share one engine.

Each tree of a block is a coroutine; while one waits for its samples the others ask for theirs, so the engine always has a batch. No
tree depends on a clock or a thread: with the embedded policy, which works in the same event loop, a block meets the same batches and
gives the same trees on every run. A finished block is what a caller stores; after a kill it names the examples that are done, and whole
blocks are skipped, so the others are searched in the company that they would have had, by a policy that remembers nothing of before.
A stop gives up the block that is being searched.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from itool.config import RunConfig, SearchConfig
from itool.data.chat import evaluation_prompt, render_prompt, response_ids
from itool.errors import InputError, Interrupted, ItoolError
from itool.logs import get_logger
from itool.names import QUESTION_TOO_LONG
from itool.policy.protocol import Policy
from itool.records import Example, PreferencePair, SearchTree
from itool.search.best_of_n import best_of_n_settings, rejection_sampling_settings
from itool.search.mcts import SearchTask, search_tree
from itool.search.pairs import extract_pairs
from itool.search.reading import TokenReader
from itool.search.steps import Granularity

UNUSABLE = "unusable_example"
"""The policy or the tokenizer refused the example with an InputError; the log names it."""

STOP_LOOK_SECONDS = 0.2
"""How often a block that is being searched looks whether it shall stop."""

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
    iteration: int,
    done: Collection[str] = frozenset(),
    should_stop: Callable[[], bool] = lambda: False,
) -> AsyncIterator[SearchBlock]:
    """Search the examples in blocks of `search.trees_in_flight`, leaving out those whose ids are `done` (found or dropped earlier).

    Blocks are cut from *all* examples, so that a restarted search forms the same ones. Raises the ItoolError that ends the stage (the
    engine is gone, say), and Interrupted soon after `should_stop` says so, unless all is done. An InputError or an unforeseen fault costs
    its example only and is counted under a reason.
    """
    reader = TokenReader(tokenizer)
    size = config.search.trees_in_flight
    for start in range(0, len(examples), size):
        waiting = [example for example in examples[start : start + size] if example.id not in done]
        if not waiting:
            continue
        _raise_if(should_stop)
        policy.forget()
        block = SearchBlock()
        searches = [_search_one(policy, reader, example, config, block, iteration=iteration) for example in waiting]
        block.trees = await _run_together(searches, should_stop)
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
    """The preference pairs of a tree under the run's method, and the states that gave none by reason. Rejection sampling makes none."""
    if config.method == "rejection_sampling":
        return [], Counter()
    settings = search_settings(config)
    return extract_pairs(tree, min_gap=settings.min_gap, min_visits=settings.min_visits)


def prepare_task(tokenizer: Any, example: Example, config: RunConfig, *, iteration: int) -> SearchTask:
    """Everything about one example that its search needs. The prompt leaves room for the longest answer, as `prepare` sees to it.

    With self-evaluation the answer also leaves room for the question about it; `max_tokens` below 1 says that there is none.

    With `data.buffer_labels: checker` the ground-truth text is not looked at, even where there is one.
    """
    settings = search_settings(config)
    prompt_ids = tuple(render_prompt(tokenizer, example))
    max_tokens = config.model.max_response_tokens
    if settings.confidence_weight > 0:
        max_tokens = min(max_tokens, config.model.context_tokens - len(evaluation_prompt(tokenizer, example, ".")[0]))
    ground_truth: tuple[int, ...] | None = None
    if settings.inject_ground_truth and config.data.buffer_labels == "response" and example.response is not None:
        ground_truth = tuple(response_ids(tokenizer, example))
        if len(ground_truth) > max_tokens:
            ground_truth = None
    return SearchTask(example, prompt_ids, ground_truth, max_tokens, config.seed, iteration)


async def _search_one(
    policy: Policy, reader: TokenReader, example: Example, config: RunConfig, block: SearchBlock, *, iteration: int
) -> SearchTree | None:
    """The tree of one example, or None and a reason in `block.dropped`: the one place where a fault may cost an example, not the stage."""
    try:
        task = prepare_task(reader.tokenizer, example, config, iteration=iteration)
        if task.max_tokens > 0:
            granularity: Granularity = config.search.granularity if config.method == "mcts_dpo" else "response"
            return await search_tree(policy, reader, task, search_settings(config), granularity=granularity)
        reason, cause = QUESTION_TOO_LONG, f"prompt of {len(task.prompt_ids)} tokens"
    except InputError as fault:
        reason, cause = UNUSABLE, str(fault)
    except ItoolError:
        raise
    except Exception as fault:  # noqa: BLE001 - one strange example must not end a search of hours; it is counted, and the log names it
        reason, cause = f"unexpected_{type(fault).__name__}", str(fault)
    block.dropped[example.id] = reason
    _log.warning("example dropped", example_id=example.id, reason=reason, cause=cause)
    return None


async def _run_together(searches: Sequence[Coroutine[Any, Any, SearchTree | None]], should_stop: Callable[[], bool]) -> list[SearchTree]:
    """The trees that were found, in order. The first fault that ends the stage, and a stop, cancel the searches that still run."""
    running = [asyncio.create_task(search) for search in searches]
    pending = set(running)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=STOP_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for search in done:
                search.result()
            if pending:
                _raise_if(should_stop)
    finally:
        for search in pending:
            search.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return [tree for search in running if (tree := search.result()) is not None]


def _raise_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Interrupted("the search was stopped", remedy="Run the same command again to resume")
