"""Pre-training in miniature: it learns, it repeats bit for bit, and what it saves can be loaded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from itool.demo import base_model_path
from itool.demo.pretrain import Recipe, build_model, save, train
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
