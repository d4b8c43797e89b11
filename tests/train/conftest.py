"""A random Llama of 50,000 parameters with a word tokenizer: everything that training touches, in milliseconds."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from itool.config import ModelConfig
from itool.records import PreferencePair
from itool.train.model import load_model, new_adapter, save_adapter
from itool.train.sequences import TokenSequence
from tests.fakes.one_thread import one_thread  # noqa: F401

VOCABULARY = 64


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-base")
    torch.manual_seed(5)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**shape, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lora() -> ModelConfig:
    return ModelConfig(lora_rank=4, lora_alpha=8.0)


def random_sequences(count: int, seed: int = 1, longest: int = 40) -> list[TokenSequence]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, high))]

    return [TokenSequence(ids(2, longest), [*ids(1, 8), 2], f"example-{index}") for index in range(count)]


@pytest.fixture
def sequences() -> list[TokenSequence]:
    return random_sequences(24)


@pytest.fixture
def adapter(tiny_base, lora, tmp_path):
    """A trained-looking adapter: LoRA's B is zero at first, and a policy equal to its base would hide mistakes."""
    model = new_adapter(load_model(tiny_base), lora, seed=1)
    torch.manual_seed(8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    save_adapter(model, tmp_path / "adapter-in")
    return tmp_path / "adapter-in"


@pytest.fixture
def dropping_adapter(adapter):
    """The same adapter, which drops half of its inputs while it is trained."""
    folder = adapter.parent / "adapter-that-drops"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.5}))
    return folder


def pair(prompt, prefix, chosen, rejected):
    evidence = {"chosen_value": 1.0, "rejected_value": 0.0, "chosen_correct": 1, "rejected_wrong": 1}
    sides = {"chosen_ids": chosen, "rejected_ids": rejected, "chosen_visits": 3, "rejected_visits": 1}
    return PreferencePair(example_id="e", prompt_ids=prompt, prefix_ids=prefix, **sides, **evidence)


@pytest.fixture
def pairs():
    rng = random.Random(2)

    def ids(low, high):
        return [rng.randrange(3, 64) for _ in range(rng.randint(low, high))]

    return [pair(ids(5, 30), ids(0, 5), [3, *ids(0, 4)], [4, *ids(0, 4)]) for _ in range(10)]
