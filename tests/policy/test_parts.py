"""Random numbers by coordinates, remembered prefixes, a server's flags and its log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from itool.config import ModelConfig, PolicyConfig
from itool.errors import DependencyError, InputError
from itool.policy.model_folder import adapter_digest, attention_window, read_model_folder
from itool.policy.prefixes import PrefixCache
from itool.policy.randomness import stream_keys, uniforms
from itool.policy.server import find_vllm_python, last_meaningful_line, server_arguments, server_environment
from itool.policy.vllm import derived_seed
from tests.policy.conftest import STOP, Folders


def test_uniforms_depend_on_seed_sample_and_position_only() -> None:
    many = stream_keys(7, range(100))
    assert (stream_keys(7, range(40, 60)) == many[40:60]).all()
    assert (uniforms(many, 3)[40:60] == uniforms(stream_keys(7, range(40, 60)), 3)).all()
    assert not (uniforms(many, 3) == uniforms(many, 4)).any()
    assert not (stream_keys(8, range(100)) == many).any()


def test_uniforms_never_change_between_versions() -> None:
    assert uniforms(stream_keys(17, range(3)), 0).tolist() == pytest.approx([0.9179405, 0.9341496, 0.7948612], abs=1e-7)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    draws = np.stack([uniforms(stream_keys(seed, range(50)), position) for seed in range(100) for position in range(10)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert np.histogram(draws, bins=20, range=(0, 1))[0] == pytest.approx(2500, abs=250)
    assert np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1] == pytest.approx(0, abs=0.02)


def test_any_integer_is_a_seed() -> None:
    assert {derived_seed(seed) < 2**62 for seed in (0, -1, 2**80)} == {True}
    assert len({int(stream_keys(seed, range(1))[0]) for seed in (0, -1, 1, 2**63)}) == 4


def cache_of(tokens: int) -> torch.Tensor:
    return torch.zeros(1, 2, 1, tokens, 4)


def test_the_longest_known_prefix_is_found_to_the_token() -> None:
    prefixes = PrefixCache(1 << 20)
    known = list(range(50))
    prefixes.add(known, cache_of(50))
    assert prefixes.longest([*known, 7, 8], at_most=51)[0] == 50
    assert prefixes.longest(known, at_most=49)[0] == 49
    assert prefixes.longest([*known[:20], 99, *known[21:]], at_most=49)[0] == 20
    assert prefixes.longest(known[:10], at_most=9) == (0, None)
    assert prefixes.longest([99, *known[1:]], at_most=49) == (0, None)


def test_the_prefix_used_longest_ago_is_forgotten_first() -> None:
    prefixes = PrefixCache(2 * cache_of(32).nbytes)
    first, second, third = ([start + number for number in range(32)] for start in (0, 100, 200))
    prefixes.add(first, cache_of(32))
    prefixes.add(second, cache_of(32))
    prefixes.longest(first, at_most=31)
    prefixes.add(third, cache_of(32))
    assert [prefixes.longest(ids, at_most=31)[0] for ids in (first, second, third)] == [31, 0, 31]


BASE = Path("/models/base")


def test_the_lora_rank_limit_is_the_next_value_that_vllm_takes() -> None:
    for rank, limit in {1: "1", 4: "8", 16: "16", 17: "32", 256: "256", 400: "512"}.items():
        arguments = server_arguments(BASE, 512, ModelConfig(lora_rank=rank), port=1, max_requests=8, gpu=False)
        assert arguments[arguments.index("--max-lora-rank") + 1] == limit


def test_a_server_without_a_gpu_never_cuts_a_prompt_into_pieces() -> None:
    arguments = server_arguments(BASE, 300, ModelConfig(), port=1, max_requests=8, gpu=False)
    assert {"--no-enable-chunked-prefill", "--enforce-eager"} <= set(arguments)
    assert arguments[arguments.index("--max-model-len") + 1] == "300"
    assert "--enforce-eager" not in server_arguments(BASE, 512, ModelConfig(), port=1, max_requests=8, gpu=True)


def test_the_server_does_not_inherit_this_pythons_packages() -> None:
    environment = server_environment({"PYTHONPATH": "x", "VIRTUAL_ENV": "y", "HOME": "z"}, python=Path("/v/bin/python"))
    assert "PYTHONPATH" not in environment
    assert environment["HOME"] == "z"


def test_the_last_line_that_names_an_error_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(Worker pid=1) ERROR 11-21 07:00:00 [multiproc_executor.py:1063] RuntimeError: out of memory\n"
        "(APIServer pid=3) WARNING 11-21 07:00:00 [system_utils.py:255] like `OSError: [Errno 24] Too many open files`.\n"
        "(EngineCore pid=2) ERROR 11-21 07:00:00 [core.py:1] RuntimeError: Engine failed. See stack trace (above) for the root cause.\n"
        "INFO: Shutting down\n\n"
    )
    assert last_meaningful_line(log) == "RuntimeError: out of memory"
    assert last_meaningful_line(tmp_path / "none") == "it left no log"


def test_without_vllm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ITOOL_VLLM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(DependencyError, match=r"no Python with vllm found \(tried .*python\)\. Install it with"):
        find_vllm_python()


def test_an_environment_in_this_folder_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ITOOL_VLLM_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    with pytest.raises(DependencyError) as caught:
        find_vllm_python()
    assert str(caught.value).count(".venv-vllm/bin/python") == 1


def test_a_model_folder_tells_its_stop_ids_and_its_context(folders: Folders) -> None:
    assert read_model_folder(folders.model, context_tokens=9999).context_tokens == 256
    assert read_model_folder(folders.model, context_tokens=64).context_tokens == 64
    assert read_model_folder(folders.model, context_tokens=64).stop_ids == (STOP,)


def test_a_model_folder_needs_weights_only_where_they_are_computed_with(folders: Folders, tmp_path: Path) -> None:
    for path in folders.model.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="holds no"):
        read_model_folder(tmp_path, context_tokens=64)
    assert read_model_folder(tmp_path, context_tokens=64, weights=False).stop_ids == (STOP,)
    assert PolicyConfig(backend="vllm", url="http://vllm:8000").needs_weights is False
    assert PolicyConfig(backend="vllm").needs_weights is True
    assert PolicyConfig(backend="embedded", url="http://vllm:8000").needs_weights is True


@pytest.mark.parametrize(
    ("model_type", "settings", "window"),
    [
        ("llama", {}, None),
        ("mistral", {"sliding_window": 8}, 8),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 8}, None),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "num_hidden_layers": 2, "max_window_layers": 1}, 8),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "num_hidden_layers": 2, "max_window_layers": 2}, None),
        ("gemma3_text", {"sliding_window": 8, "num_hidden_layers": 6}, 8),
    ],
)
def test_a_window_is_that_of_the_layers_that_have_one(model_type: str, settings: dict[str, Any], window: int | None) -> None:
    assert attention_window(AutoConfig.for_model(model_type, **settings)) == window


def test_an_adapters_digest_is_that_of_its_content(folders: Folders, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (copy / name).write_bytes((folders.adapter / name).read_bytes())
    assert adapter_digest(copy) == adapter_digest(folders.adapter) != adapter_digest(folders.other_adapter)
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        adapter_digest(copy)
