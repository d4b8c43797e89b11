from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from itool.config import RunConfig, parse_config
from itool.data.chat import evaluation_prompt, render_prompt, response_ids
from itool.errors import DependencyError, InputError, Interrupted, NumericalError
from itool.names import QUESTION_TOO_LONG
from itool.policy.protocol import Sample
from itool.records import Example, SearchTree
from itool.search.generate import UNUSABLE, SearchBlock, pairs_of, prepare_task, search_examples
from itool.stages import flatten, unread
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import Request, ScriptedPolicy
from tests.search.scenes import WEATHER, WRONG_DAYS, WRONG_UNIT, weather_example

TOKENIZER = byte_tokenizer()
EXAMPLES = [weather_example(id=f"weather-{number}") for number in range(7)]


def _config(**sections: Any) -> RunConfig:
    search = {"trees_in_flight": 3, "root_samples": 6, "width": 3, "simulations": 3} | sections.pop("search", {})
    return parse_config({"search": search, **sections})


def _policy(answers: Sequence[str] = (WEATHER, WRONG_UNIT, WRONG_DAYS), **options: Any) -> ScriptedPolicy:
    return ScriptedPolicy(TOKENIZER, answers, prompt_tokens=len(render_prompt(TOKENIZER, EXAMPLES[0])), **options)


def _search(
    policy: ScriptedPolicy,
    config: RunConfig,
    examples: Sequence[Example] = EXAMPLES,
    *,
    done: Collection[str] = frozenset(),
    stop_after: int = 99,
    iteration: int = 1,
) -> list[SearchBlock]:
    async def collect() -> list[SearchBlock]:
        blocks: list[SearchBlock] = []
        async for block in search_examples(policy, TOKENIZER, examples, config, iteration=iteration, done=done):
            blocks.append(block)
            if len(blocks) == stop_after:
                break
        return blocks

    return asyncio.run(collect())


def _trees(blocks: Sequence[SearchBlock]) -> dict[str, SearchTree]:
    return {tree.example_id: tree for block in blocks for tree in block.trees}


def test_every_example_gets_a_tree_in_order_and_in_blocks() -> None:
    blocks = _search(_policy(), _config())
    assert [[tree.example_id for tree in block.trees] for block in blocks] == [
        ["weather-0", "weather-1", "weather-2"],
        ["weather-3", "weather-4", "weather-5"],
        ["weather-6"],
    ]


def test_a_killed_search_continues_with_the_unfinished_trees() -> None:
    config = _config()
    undisturbed = _trees(_search(_policy(), config))
    before = _trees(_search(_policy(), config, stop_after=1))
    policy = _policy()
    after = _trees(_search(policy, config, done=before.keys()))
    assert before.keys() | after.keys() == undisturbed.keys()
    assert not before.keys() & after.keys()
    assert before | after == undisturbed


def test_every_block_meets_a_policy_that_remembers_nothing_in_the_company_that_it_always_has() -> None:
    """Blocks are cut from all examples: what is done already moves no other into another block."""
    events: list[str] = []

    class Remembering(ScriptedPolicy):
        def forget(self) -> None:
            events.append("forget")

    policy = Remembering(TOKENIZER, [WEATHER], prompt_tokens=10**6, before_sample=lambda _ids: events.append("ask"))
    blocks = _search(policy, _config(), done={"weather-1", "weather-3", "weather-4", "weather-5"})
    assert [[tree.example_id for tree in block.trees] for block in blocks] == [["weather-0", "weather-2"], ["weather-6"]]
    assert [event for event, _ in itertools.groupby(events)] == ["forget", "ask", "forget", "ask"]
    assert events.count("forget") == 2


def test_a_search_has_the_seed_of_its_run() -> None:
    seeds = [{request.seed for request in _asked(_config(seed=seed))} for seed in (17, 18)]
    assert seeds[0].isdisjoint(seeds[1])


def _asked(config: RunConfig) -> list[Request]:
    policy = _policy()
    _search(policy, config)
    return policy.requests


def test_a_ground_truth_is_injected_where_it_just_fits() -> None:
    tokens = len(response_ids(TOKENIZER, EXAMPLES[0]))
    for limit, fits in ((tokens, True), (tokens - 1, False)):
        config = _config(model={"context_tokens": 2000, "max_response_tokens": limit})
        assert (prepare_task(TOKENIZER, EXAMPLES[0], config, iteration=1).ground_truth_ids is not None) == fits


def test_a_stop_cancels_the_trees_that_are_searched_and_keeps_the_blocks_before() -> None:
    """A request to vLLM may take a minute more: it is not waited for."""
    blocks: list[SearchBlock] = []
    waiting, cancelled = [], []

    class Slow(ScriptedPolicy):
        async def sample(self, *given: Any, **more: Any) -> list[Sample]:
            if not blocks:
                return await super().sample(*given, **more)
            waiting.append("request")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append("request")
                raise
            raise AssertionError

    async def search() -> None:
        policy = Slow(TOKENIZER, [WEATHER], prompt_tokens=len(render_prompt(TOKENIZER, EXAMPLES[0])))
        async for block in search_examples(policy, TOKENIZER, EXAMPLES, _config(), iteration=1, should_stop=lambda: bool(waiting)):
            blocks.append(block)

    with pytest.raises(Interrupted):
        asyncio.run(asyncio.wait_for(search(), 10))
    assert [len(block.trees) for block in blocks] == [3]
    assert len(waiting) == len(cancelled) == 3


def test_a_search_that_is_finished_is_not_stopped_any_more() -> None:
    policy = _policy()

    async def search() -> list[SearchBlock]:
        examples = EXAMPLES[:3]
        blocks = search_examples(policy, TOKENIZER, examples, _config(), iteration=1, should_stop=lambda: bool(policy.requests))
        return [block async for block in blocks]

    assert len(_trees(asyncio.run(search()))) == 3


def test_a_tree_does_not_depend_on_its_neighbours() -> None:
    together = _trees(_search(_policy(), _config(search={"trees_in_flight": 7})))
    alone = _trees(_search(_policy(), _config(search={"trees_in_flight": 1})))
    assert together == alone


def test_all_trees_of_a_block_ask_before_the_first_goes_on() -> None:
    """What makes the batches of an engine the same on every run."""
    policy = _policy()
    _search(policy, _config(search={"trees_in_flight": 7}))
    states = [len(request.ids) for request in policy.requests]
    assert len(set(states[:7])) == 1, "seven roots first"
    assert policy.requests[0].count == 6


def test_every_request_has_a_seed_of_its_own_and_another_in_the_next_iteration() -> None:
    policy = _policy()
    for iteration in (1, 2):
        _search(policy, _config(), iteration=iteration)
    seeds = [request.seed for request in policy.requests]
    assert len(set(seeds)) == len(seeds)


def test_a_fault_costs_one_example_and_is_counted() -> None:
    asked = 0

    def break_once(ids: Sequence[int]) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise ValueError("surprise")
        if asked == 3:
            raise InputError("prompt and answer exceed the context")

    blocks = _search(_policy(before_sample=break_once), _config(), EXAMPLES[:3])
    assert blocks[0].dropped == {"weather-1": "unexpected_ValueError", "weather-2": UNUSABLE}
    assert [tree.example_id for tree in blocks[0].trees] == ["weather-0"]


@pytest.mark.parametrize("fault", [DependencyError("engine gone"), NumericalError("logits are not finite")])
def test_a_fault_of_the_engine_ends_the_search(fault: Exception) -> None:
    def fail(ids: Sequence[int]) -> None:
        raise fault

    with pytest.raises(type(fault)):
        _search(_policy(before_sample=fail), _config())


def test_with_self_evaluation_an_answer_leaves_room_for_the_question_about_it() -> None:
    answer = "x" * 40
    around = len(evaluation_prompt(TOKENIZER, EXAMPLES[0], answer)[0]) - len(answer)
    config = _config(model={"context_tokens": around + 6, "max_response_tokens": around}, search={"confidence_weight": 0.5})
    task = prepare_task(TOKENIZER, EXAMPLES[0], config, iteration=1)
    assert around < around + task.max_tokens < config.model.context_tokens
    assert task.ground_truth_ids is None, "it would not fit"
    config = _config(model={"context_tokens": around, "max_response_tokens": around - 1}, search={"confidence_weight": 0.5})
    assert _search(_policy(), config, EXAMPLES[:1])[0].dropped == {"weather-0": QUESTION_TOO_LONG}


def test_with_a_checker_the_ground_truth_text_is_not_looked_at() -> None:
    config = _config(data={"buffer_labels": "checker"}, select={"by": "pass_rate"})
    assert prepare_task(TOKENIZER, EXAMPLES[0], config, iteration=1).ground_truth_ids is None
    policy = _policy([WEATHER, WRONG_UNIT])
    trees = _trees(_search(policy, config, [weather_example(response=None)]))
    assert policy.logprob_requests == []
    assert pairs_of(trees["weather-1"], config)[0]


@pytest.mark.parametrize(("method", "pairs_expected"), [("mcts_dpo", True), ("best_of_n", True), ("rejection_sampling", False)])
def test_each_method_searches_in_its_own_way(method: str, pairs_expected: bool) -> None:
    config = _config(method=method, search={"best_of": 16})
    policy = _policy([WRONG_UNIT])
    [tree] = _trees(_search(policy, config, EXAMPLES[:1])).values()
    found, _ = pairs_of(tree, config)
    assert bool(found) == pairs_expected, "with no right sample only an injected ground truth can be chosen"
    assert (tree.samples == 16 and tree.simulations == 1) == (method != "mcts_dpo")


def test_rejection_sampling_pairs_nothing_of_what_it_draws() -> None:
    best_of_n = _config(method="best_of_n")
    [tree] = _trees(_search(_policy([WRONG_UNIT]), best_of_n, EXAMPLES[:1])).values()
    assert pairs_of(tree, best_of_n)[0]
    assert pairs_of(tree, _config(method="rejection_sampling")) == ([], Counter())


def test_a_whole_response_is_rejected_though_it_was_drawn_once() -> None:
    """There is nothing that could visit it again."""
    config = _config(method="best_of_n", search={"best_of": 1, "min_visits": 2})
    [tree] = _trees(_search(_policy([WRONG_UNIT]), config, EXAMPLES[:1])).values()
    [pair], _ = pairs_of(tree, config)
    assert (pair.rejected_visits, pair.injected) == (1, True)


@pytest.mark.parametrize("method", ["best_of_n", "rejection_sampling"])
def test_the_controls_take_whole_responses_as_steps_and_never_ask_for_self_evaluation(method: str) -> None:
    policy = _policy()
    [tree] = _trees(_search(policy, _config(method=method, search={"confidence_weight": 0.5}), EXAMPLES[:1])).values()
    assert [node.terminal for node in tree.nodes] == [False] + [True] * 3
    assert policy.questions == 0


@pytest.mark.parametrize("method", ["mcts_dpo", "best_of_n", "rejection_sampling"])
def test_what_enters_no_key_of_a_search_changes_nothing_that_it_finds(method: str) -> None:
    def found(**search: Any) -> tuple[list[SearchBlock], list[Any]]:
        config = _config(method=method, search=search)
        blocks = _search(_policy(), config, EXAMPLES[:2])
        return blocks, [pairs_of(tree, config) for tree in _trees(blocks).values()]

    others = {"granularity": "call", "inject_ground_truth": False, "gamma": 0.25, "c_puct": 9.0, "confidence_weight": 0.5}
    left_out = [path for path in unread(flatten(_config(method=method).model_dump()), "generate") if path.startswith("search.")]
    assert left_out
    for field in (path.removeprefix("search.") for path in left_out):
        assert found(**{field: others.get(field, 1)}) == found(), field


def test_sampled_tokens_are_counted_for_search_and_control_alike() -> None:
    for method in ("mcts_dpo", "best_of_n"):
        trees = _trees(_search(_policy([WRONG_UNIT]), _config(method=method), EXAMPLES[:1]))
        [tree] = trees.values()
        assert tree.sampled_tokens >= tree.samples * 5
