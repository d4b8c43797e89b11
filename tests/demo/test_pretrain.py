"""Pre-training in miniature: it learns, it repeats bit for bit, and what it saves can be loaded."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from itool.demo import base_model_path
from itool.demo.pretrain import Recipe, _batches, _phase_draft, _response_loss, _schedule, build_model, save, train
from itool.muon import Muon, orthogonalise

TINY = Recipe(copy_exercises=24, tokens=1_500, pool=16, batch_tokens=1_024, layers=1, width=64, heads=2, feed_forward=64)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base_model_path())


def _train_tiny(tokenizer: PreTrainedTokenizerFast, output: Path) -> tuple[LlamaForCausalLM, dict[str, float]]:
    model = build_model(TINY, tokenizer)
    return model, train(TINY, model, tokenizer, output, checkpoint_seconds=1e9)


def test_a_second_run_gives_the_same_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first, counts = _train_tiny(tokenizer, tmp_path)
    second, again = _train_tiny(tokenizer, tmp_path)
    assert {**counts, "seconds": 0} == {**again, "seconds": 0}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_loss_is_the_mean_over_the_response_tokens_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(TINY, tokenizer)
    batch = [([40, 41, 42, 43, 44], 2), ([50, 51, 52], 1), ([60, 61], 1)]
    total = 0.0
    for ids, prompt in batch:
        labels = torch.tensor([[-100] * prompt + ids[prompt:]])
        total += model(input_ids=torch.tensor([ids]), labels=labels).loss.item() * (len(ids) - prompt)
    assert _response_loss(model, batch, tokenizer.pad_token_id).item() == pytest.approx(total / 6, abs=1e-5)


def test_the_learning_rate_rises_stays_and_falls_to_three_percent() -> None:
    recipe = Recipe(decay_from=0.6)
    assert [_schedule(update, 0.1, recipe) for update in (0, 29, 59, 999)] == pytest.approx([1 / 60, 0.5, 1.0, 1.0])
    assert [_schedule(999, progress, recipe) for progress in (0.6, 0.8, 1.0)] == pytest.approx([1.0, 1 - 0.97 / 2, 0.03])


def test_weights_and_data_come_from_the_recipes_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    recipes = TINY, replace(TINY, seed=TINY.seed + 1)
    first, second = (build_model(recipe, tokenizer).get_input_embeddings().weight for recipe in recipes)
    assert not torch.equal(first, second)
    one, other = (next(iter(_batches(recipe, tokenizer, 0.0))) for recipe in recipes)
    assert one != other


def test_examples_grow_from_one_small_tool_to_six() -> None:
    def share_of_small(progress: float) -> float:
        drafts = [_phase_draft(random.Random(number), progress, 0.0) for number in range(200)]
        return sum(len(draft.offers) <= 2 and len(draft.calls) <= 1 for draft in drafts) / len(drafts)

    assert share_of_small(0.05) > 0.8
    assert share_of_small(0.9) < 0.6


def test_what_is_saved_loads_in_bfloat16_with_tokenizer_and_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = build_model(TINY, tokenizer)
    save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 48, 16), (1, 16, 48)])
def test_orthogonalise_brings_all_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_muon_reaches_the_minimum_of_a_quadratic() -> None:
    target = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    matrix = torch.nn.Parameter(torch.zeros(16, 8))
    muon = Muon([matrix], lr=0.1, weight_decay=0.0)
    for update in range(300):
        matrix.grad = matrix.detach() - target
        muon.param_groups[0]["lr"] = 0.1 * (1 - update / 300)
        muon.step()
    assert (matrix - target).norm() < 0.1 * target.norm()
