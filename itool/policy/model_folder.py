"""What a policy must know of a model folder before it loads or serves it: context, stop ids, vocabulary. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itool.errors import InputError

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What adapters are trained on and vLLM serves. Without lm_head: with it, concurrent prompt_logprobs kill the engine of the CPU build."""


@dataclass(frozen=True)
class ModelFolder:
    """A materialised base model: safetensors, config.json, tokenizer.

    `stop_ids` are the ids that end a turn; `context_tokens` is the longest prompt + response, the smaller of the configured one and
    the model's own.
    """

    path: Path
    context_tokens: int
    vocabulary: int
    stop_ids: tuple[int, ...]

    def check_request(self, prompt_ids: Sequence[int], new_tokens: int) -> None:
        """Raise InputError when a request cannot be answered by this model."""
        if not prompt_ids:
            raise InputError("the prompt is empty: a policy needs at least one token")
        if new_tokens < 1:
            raise InputError(f"max_tokens is {new_tokens}: a policy answers with at least one token")
        if len(prompt_ids) + new_tokens > self.context_tokens:
            raise InputError(
                f"a prompt of {len(prompt_ids)} tokens and {new_tokens} new ones exceed the context of {self.context_tokens} tokens",
                remedy="Drop the example, lower model.max_response_tokens or raise model.context_tokens",
            )

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise InputError when an id is no token of this model."""
        worst = max(ids) if min(ids) >= 0 else min(ids)
        if not 0 <= worst < self.vocabulary:
            raise InputError(f"token id {worst} is outside the vocabulary of {self.path} (0 to {self.vocabulary - 1})")


def read_model_folder(path: Path, *, context_tokens: int, weights: bool = True) -> ModelFolder:
    """Read a model folder's facts; `weights` says whether they are needed here.

    Raises InputError when the folder is missing, incomplete or names no end-of-turn token.
    """
    config = read_json(path / "config.json")
    if weights and not any(path.glob("*.safetensors")):
        raise InputError(f"model folder {path} holds no .safetensors weights", remedy="Run the prepare stage again")
    stops = read_stop_ids(path)
    if not stops:
        raise InputError(f"model folder {path} names no end-of-turn token", remedy="Set eos_token_id in its config.json")
    return ModelFolder(path, usable_context(config, context_tokens), int(config["vocab_size"]), stops)


def read_stop_ids(path: Path) -> tuple[int, ...]:
    """The end-of-turn ids that generation_config.json, config.json and the tokenizer name, in one sorted tuple; maybe none."""
    found: set[int] = set()
    sources = [read_json(path / "config.json")]
    if (path / "generation_config.json").is_file():
        sources.append(read_json(path / "generation_config.json"))
    for source in sources:
        value = source.get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    found.update(_tokenizer_stop(path))
    return tuple(sorted(found))


def usable_context(config: Mapping[str, Any], context_tokens: int) -> int:
    """The longest prompt + response of a model with this config.json: what was asked for, at most the model's own."""
    return min(context_tokens, int(config.get("max_position_embeddings", context_tokens)))


def attention_window(config: Any) -> int | None:
    """How many tokens, itself included, a position sees in the windowed layers of a model with this transformers configuration.

    None when every layer sees all that came before.
    """
    layers = getattr(config, "layer_types", None)
    windowed = getattr(config, "use_sliding_window", True) and (layers is None or "sliding_attention" in layers)
    return getattr(config, "sliding_window", None) if windowed else None


def other_layers(model: Any) -> list[str]:
    """The kinds of a transformers model's layers that are neither full nor windowed attention (recurrent ones, say): they heed no mask."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return sorted(kinds) or (["recurrent"] if getattr(model, "_is_stateful", False) else [])


def check_adapter(path: Path) -> None:
    """Raise InputError unless the folder holds a LoRA adapter as PEFT writes it."""
    settings = read_json(path / "adapter_config.json", what="adapter folder")
    if settings.get("peft_type") != "LORA":
        what = f"adapter folder {path} holds a {settings.get('peft_type')} adapter; only LORA is supported"
        raise InputError(what, remedy="Run the training stage again")
    if not (path / "adapter_model.safetensors").is_file():
        raise InputError(f"adapter folder {path} has no adapter_model.safetensors", remedy="Run the training stage again")


def adapter_digest(path: Path) -> str:
    """SHA-256 over an adapter's settings and weights: its name on a server, so that no cache can mix two adapters up."""
    check_adapter(path)
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update(hashlib.sha256((path / name).read_bytes()).digest())
    return digest.hexdigest()


def _tokenizer_stop(path: Path) -> list[int]:
    """The id of the tokenizer's `eos_token`; [] when the folder does not say."""
    if not (path / "tokenizer_config.json").is_file() or not (path / "tokenizer.json").is_file():
        return []
    token = read_json(path / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    added = read_json(path / "tokenizer.json").get("added_tokens", [])
    return [int(entry["id"]) for entry in added if entry["content"] == text]


def read_json(path: Path, *, what: str = "model folder") -> dict[str, Any]:
    """The object in a JSON file of a model's or an adapter's folder. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = f"has no {path.name}" if path.parent.is_dir() else "does not exist"
        raise InputError(f"{what} {path.parent} {missing}", remedy="Run the stage that writes it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object")
    return content
