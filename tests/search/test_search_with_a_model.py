"""The search on a real, if tiny, language model behind the embedded policy."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from itool.config import RunConfig, parse_config
from itool.data.chat import render_prompt
from itool.policy.embedded import EmbeddedPolicy
from itool.records import SearchTree
from itool.search.generate import pairs_of, search_examples
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.one_thread import one_thread  # noqa: F401
from tests.search.scenes import OTHER_ORDER, WEATHER, WRONG_DAYS, WRONG_UNIT, weather_example

ANSWERS = [WEATHER, OTHER_ORDER, WRONG_DAYS, WRONG_UNIT, "I cannot. Ask someone else."]
EXAMPLES = [weather_example(id=f"weather-{number}") for number in range(4)]
SEARCH = {"root_samples": 8, "width": 4, "simulations": 4, "trees_in_flight": 2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers that has learned to answer the one prompt in five ways, about equally often."""
    folder = tmp_path_factory.mktemp("five-answers")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    stop = tokenizer.eos_token_id
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=stop, eos_token_id=stop, **shape)
    model = LlamaForCausalLM(config)
    prompt = render_prompt(tokenizer, EXAMPLES[0])
    sequences = [[*prompt, *tokenizer.encode(answer), stop] for answer in ANSWERS]
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [stop] * (width - len(sequence)) for sequence in sequences])
    labels = torch.tensor([[-100] * len(prompt) + sequence[len(prompt) :] + [-100] * (width - len(sequence)) for sequence in sequences])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(**search: object) -> RunConfig:
    return parse_config({"model": {"context_tokens": 256, "max_response_tokens": 60}, "search": SEARCH | search})


def _search(model_dir: Path, config: RunConfig, *, done: Collection[str] = frozenset(), stop_after: int = 99) -> dict[str, SearchTree]:
    async def run() -> dict[str, SearchTree]:
        trees: dict[str, SearchTree] = {}
        async with EmbeddedPolicy(model_dir, None, model=config.model, policy=config.policy) as policy:
            async for block in search_examples(policy, byte_tokenizer(), EXAMPLES, config, iteration=1, done=done):
                assert not block.dropped
                trees |= {tree.example_id: tree for tree in block.trees}
                if len(trees) >= stop_after:
                    break
        return trees

    return asyncio.run(run())


def test_a_search_repeats_itself_exactly_and_continues_where_it_was_killed(model_dir: Path) -> None:
    config = _config()
    undisturbed = _search(model_dir, config)
    before = _search(model_dir, config, stop_after=2)
    assert len(before) == 2
    assert before | _search(model_dir, config, done=before.keys()) == undisturbed


def test_a_search_of_a_model_that_errs_now_and_then_finds_its_mistakes(model_dir: Path) -> None:
    config = _config(root_samples=16)
    decode = byte_tokenizer().decode
    found = [pair for tree in _search(model_dir, config).values() for pair in pairs_of(tree, config)[0]]
    assert found
    for pair in found:
        state, chosen, rejected = (decode(ids, skip_special_tokens=True) for ids in (pair.prefix_ids, pair.chosen_ids, pair.rejected_ids))
        assert any(answer.startswith(state + chosen) for answer in (WEATHER, OTHER_ORDER)), (state, chosen)
        assert rejected != chosen


def test_priors_are_the_policy_s_own_probabilities(model_dir: Path) -> None:
    trees = _search(model_dir, _config(simulations=1))
    for tree in trees.values():
        priors = [node.prior for node in tree.nodes if node.parent == 0]
        assert all(0.0 < prior <= 1.0 + 1e-6 for prior in priors)
        assert sum(priors) <= 1.0 + 1e-4, "steps of one state exclude each other"


def test_self_evaluation_runs_on_the_same_model(model_dir: Path) -> None:
    trees = _search(model_dir, _config(simulations=1, confidence_weight=0.5, trees_in_flight=6))
    assert all(node.confidence is not None and 0.0 <= node.confidence <= 1.0 for tree in trees.values() for node in tree.nodes)
