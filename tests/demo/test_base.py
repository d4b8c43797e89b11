"""The shipped base: it loads, its template says what pre-training said, its tokenizer spells a word alike everywhere, and it is small."""

import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from itool.demo import base_model_path
from itool.demo.exact_match import exact_match
from itool.demo.pretrain import answer_greedily, data_digest
from itool.demo.prompt import render_prompt
from itool.demo.task import drafts, to_example
from itool.records import Example


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32).eval()


def _template_prompt(tokenizer, example: Example) -> str:
    tools = [{"type": "function", "function": tool.model_dump()} for tool in example.tools]
    messages = [message.model_dump() for message in example.messages]
    return str(tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False))


@pytest.mark.parametrize("split", ["pretrain", "train"])
def test_the_chat_template_renders_what_pretraining_rendered(tokenizer, split) -> None:
    for draft in islice(drafts(split, 0), 150):
        assert _template_prompt(tokenizer, to_example(draft, "x")) == render_prompt(draft.offers, draft.query)


def test_an_assistant_turn_ends_with_the_end_token(tokenizer) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "[f(a=1)]"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>hi<|assistant|>[f(a=1)]<|end|>"
    assert tokenizer.eos_token == "<|end|>"


def test_text_survives_the_tokenizer(tokenizer) -> None:
    for draft in islice(drafts("held_out", 0), 100):
        text = render_prompt(draft.offers, draft.query) + draft.response + " Zürich – 東京\t\n ok"
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_word_has_the_same_tokens_in_query_and_argument(tokenizer) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert ids(" Friday") == ids(" ") + ids("Friday")
    assert ids('="Friday"') == ids('="') + ids("Friday") + ids('"')


def test_the_base_fits_the_package_and_engines(model) -> None:
    config = json.loads((base_model_path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] % 64 == 0
    assert config["head_dim"] % 32 == 0
    assert model.num_parameters() < 8_000_000
    assert sum(path.stat().st_size for path in base_model_path().iterdir()) < 15 * 2**20


def test_the_shipped_base_was_trained_on_what_the_generator_draws_today() -> None:
    provenance = json.loads((base_model_path() / "provenance.json").read_text())
    assert provenance["data_sha256"] == data_digest(provenance["recipe"]["seed"])


@pytest.mark.slow
def test_the_base_answers_the_general_task_without_any_warm_up(model, tokenizer) -> None:
    examples = list(islice(drafts("pretrain", 12345), 30))
    answers = answer_greedily(model, tokenizer, examples)
    right = sum(exact_match(answer, draft.response) for answer, draft in zip(answers, examples, strict=True))
    assert right >= 12
