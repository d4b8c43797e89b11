"""A causal language model that runs rows of any length side by side, without padding: one packed row of tokens per forward.

Transformers' own modules do everything but attention. Attention is ours, because two facts of tree search make it cheap and a generic
engine cannot know them: the samples of a request share one prompt, so its keys and values are stored once and read once for all of them;
and rows that start together have continuations of one length, so their cache needs no mask and never grows by concatenation.
A *span* is a run of new tokens of one sequence (prefill); a *cohort* is a set of rows that decode in lockstep (decode, cohort.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from itool.errors import ConfigError, InputError
from itool.policy.model_folder import attention_window, check_adapter, other_layers

ATTENTION = "itool_packed"


class Plan(Protocol):
    """How the tokens of one forward attend. `query` [N, H, D], `key` and `value` [N, K, D] (K key-value heads); gives [N, H, D]."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor: ...


@dataclass(frozen=True)
class Shape:
    """The sizes of a key-value cache."""

    layers: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence. `cache` [layers, 2, K, past + new, D] holds the past already and receives the new."""

    ids: Sequence[int]
    past: int
    cache: Tensor


class PrefillPlan:
    """Each span attends to its own past and, causally, to itself."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        device = spans[0].cache.device
        self._masks = [_causal_mask(span.past, len(span.ids), device) for span in spans]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        output = torch.empty_like(query)
        start = 0
        for span, mask in zip(self._spans, self._masks, strict=True):
            stop = start + len(span.ids)
            keys, values = span.cache[layer]
            keys[:, span.past :] = key[:, start:stop]
            values[:, span.past :] = value[:, start:stop]
            output[:, start:stop] = scaled_dot_product_attention(
                query[None, :, start:stop], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
            )[0]
            start = stop
        return output.transpose(0, 1)


class PackedModel:
    """A model with its adapter, ready for inference on one device."""

    def __init__(self, model: Any) -> None:
        config = model.config
        heads = config.num_attention_heads
        self.shape = Shape(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        self.vocabulary = int(config.vocab_size)
        parameter = next(model.parameters())
        self.dtype: torch.dtype = parameter.dtype
        self.device: torch.device = parameter.device
        self._model = model

    def new_cache(self, tokens: int) -> Tensor:
        """An empty cache for one sequence, [layers, 2, K, tokens, D]."""
        shape = self.shape
        return torch.empty(shape.layers, 2, shape.kv_heads, tokens, shape.head_size, dtype=self.dtype, device=self.device)

    def prefill(self, spans: Sequence[Span], wanted: Sequence[int]) -> Tensor:
        """Run the new tokens of all spans; float32 logits [len(wanted), V] at the packed positions `wanted`."""
        ids = [token for span in spans for token in span.ids]
        positions = [span.past + offset for span in spans for offset in range(len(span.ids))]
        return self._forward(self._integers(ids), self._integers(positions), PrefillPlan(spans), self._integers(wanted))

    def decode(self, ids: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """Run one token per row, int64 [N] each; float32 logits [N, V]."""
        return self._forward(ids, positions, plan, 0)

    def _forward(self, ids: Tensor, positions: Tensor, plan: Plan, keep: Tensor | int) -> Tensor:
        output = self._model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep, plan=plan)
        logits: Tensor = output.logits[0]
        return logits.float()

    def _integers(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def load_packed_model(model_dir: Path, adapter_dir: Path | None, *, dtype: str, context_tokens: int) -> PackedModel:
    """Load a base model and, when given, its LoRA adapter on the GPU if there is one, else on the CPU.

    In float32 the adapter is merged into the weights: no cost per token, and the sum is the same to 1e-6. In bfloat16 it stays apart:
    the small differences that an adapter makes would be rounded away in the sum. Raises InputError when a folder cannot be used,
    ConfigError when the model's attention is not plain causal attention.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM  # noqa: PLC0415 - seconds to import; --help must not pay them
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()  # two lines of noise among log lines
    AttentionInterface.register(ATTENTION, _attend)
    target = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, dtype), attn_implementation=ATTENTION, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what = f"model folder {model_dir} cannot be loaded: {_first_line(error)}"
        raise InputError(what, remedy="Run prepare again or check model.path") from error
    _check_attention(model, context_tokens)
    if adapter_dir is not None:
        model = _with_adapter(model, adapter_dir, merge=dtype == "float32")
    return PackedModel(model.to(target).eval().requires_grad_(False))


def _with_adapter(model: Any, adapter_dir: Path, *, merge: bool) -> Any:
    from peft import PeftModel  # noqa: PLC0415 - only runs that have an adapter pay for the import

    check_adapter(adapter_dir)
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter_dir), autocast_adapter_dtype=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what = f"adapter {adapter_dir} does not fit its base model: {_first_line(error)}"
        raise InputError(what, remedy="Run the training stage again") from error
    if merge:
        return adapted.merge_and_unload()
    inner = adapted.base_model.model
    return inner.to(dtype=inner.dtype)


def _check_attention(model: Any, context_tokens: int) -> None:
    """Refuse models whose layers are not plain causal attention over the whole context."""
    config = model.config
    unsupported = f"the embedded policy does not support {config.model_type} models with"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ConfigError(f"{unsupported} capped attention", remedy="Use another base")
    if others := other_layers(model):
        remedy = "Set policy.backend to vllm, or use another base"
        raise ConfigError(f"{unsupported} layers other than attention ({', '.join(others)})", remedy=remedy)
    window = attention_window(config)
    if window is not None and window < context_tokens:
        raise ConfigError(
            f"{unsupported} windowed attention",
            remedy=f"Set model.context_tokens to at most the window, {window}, or use another base",
        )


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, *, scaling: float, plan: Plan, **_: object
) -> tuple[Tensor, None]:
    """Transformers' attention interface: `query` [1, H, N, D] in, [1, N, H, D] out."""
    output = plan.attend(module.layer_idx, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scaling)
    return output[None], None


def _causal_mask(past: int, new: int, device: torch.device) -> Tensor | None:
    """True where a new token may look, [new, past + new]; None when plain causal attention says the same."""
    if past == 0:
        return None
    return torch.ones(new, past + new, dtype=torch.bool, device=device).tril(diagonal=past)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
