"""A tiny random model with two adapters, and the two engines that must agree on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from itool.config import ModelConfig, PolicyConfig
from itool.errors import DependencyError
from itool.policy.model_folder import read_model_folder
from itool.policy.opening import open_policy
from itool.policy.protocol import Policy
from itool.policy.server import LocalVllmServer, find_vllm_python, has_gpu
from tests.fakes.one_thread import one_thread  # noqa: F401

VOCABULARY = 96
CONTEXT = 256
STOP = 2
MODEL = ModelConfig(context_tokens=CONTEXT, lora_rank=8)
SERVED = MODEL.model_copy(update={"dtype": "bfloat16"}) if has_gpu() else MODEL
"""What vLLM serves: on a GPU its adapters are computed in half precision only."""
SERVED_ROUNDING = 0.3 if has_gpu() else 1e-4
"""How far its log-probabilities may lie apart; logits in bfloat16 have steps of 1/32 between 4 and 8 (0.19 was seen on an H200)."""


@dataclass(frozen=True)
class Folders:
    model: Path
    adapter: Path
    other_adapter: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A Llama of two layers with grouped key-value heads (of size 32: vLLM on a CPU takes no smaller), and two LoRA adapters."""
    root = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=1, eos_token_id=STOP, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "model")
    words = {"<unk>": 0, "<s>": 1, "<end>": STOP} | {f"w{number}": number for number in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(root / "model")
    for seed, name in enumerate(["adapter", "other"]):
        _save_adapter(root / "model", root / name, seed)
    return Folders(root / "model", root / "adapter", root / "other")


@pytest.fixture(scope="session")
def vllm_url(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM server for the whole session; without vLLM the tests that need it are skipped, with the reason."""
    log_path = tmp_path_factory.mktemp("vllm") / "server.log"
    with running(start_server(folders, log_path)) as url:
        yield url


@contextmanager
def running(server: LocalVllmServer) -> Iterator[str]:
    """The URL of a server that is up, for code that is not asynchronous."""
    with asyncio.Runner() as runner:
        runner.run(server.__aenter__())
        try:
            yield server.url
        finally:
            runner.run(server.__aexit__(None, None, None))


def start_server(folders: Folders, log_path: Path) -> LocalVllmServer:
    try:
        find_vllm_python()
    except DependencyError as error:
        pytest.skip(str(error))
    folder = read_model_folder(folders.model, context_tokens=CONTEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        server = LocalVllmServer(folder, log_path, model=SERVED, policy=PolicyConfig())
    if has_gpu():
        # Some tests start a second one beside the session's, and a server that measures what is free fails when others come and go.
        server.arguments += ["--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(2**31)]
    return server


Opener = Callable[[Path | None], AbstractAsyncContextManager[Policy]]


@pytest.fixture(params=["embedded", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])])
def engine(request: pytest.FixtureRequest, folders: Folders) -> Opener:
    """Opens a policy with an adapter (None: the base model) on the engine that the test is run for."""
    backend: str = request.param
    url = request.getfixturevalue("vllm_url") if backend == "vllm" else None
    config = PolicyConfig(backend="vllm" if url else "embedded", url=url, batch_sequences=64)
    return lambda adapter: open_policy(folders.model, adapter, SERVED if url else MODEL, config)


@pytest.fixture
def rounding(request: pytest.FixtureRequest) -> float:
    """How far apart two computations of the same log-probability may lie on the engine that the test is run for."""
    return SERVED_ROUNDING if request.node.callspec.params["engine"] == "vllm" else 1e-4


def _save_adapter(model_dir: Path, target: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(str(target))
