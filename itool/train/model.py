"""Base models and LoRA adapters: load, create, save. Only safetensors, and the same weights always give the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.utils import logging as transformers_logging

from itool.config import ModelConfig
from itool.errors import ArtifactError, InputError
from itool.logs import get_logger
from itool.policy.model_folder import LINEAR_LAYERS, check_adapter
from itool.train.sequences import PASS_COST_TOKENS, Batch

Dtype = Literal["float32", "bfloat16"]
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PLAIN_LAYERS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
"""Blocks that are `x + attention(norm(x))`, then `x + mlp(norm(x))`, and nothing else."""
GPU_PASS_COST, GPU_FORWARD_COST = 3e12, 3e11
"""Parameters times tokens that a GPU could compute in the time it takes to launch a pass, with gradients and without."""
CPU_FORWARD_COST_TOKENS = 96
"""What a forward pass without gradients costs on a CPU, in padded tokens, at 1 M parameters as at 135 M (measured: docs/experiments.md)."""
TRAIN_AGAIN = "Run the training stage again"
_SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")

_log = get_logger(__name__)


def load_model(model_dir: Path, *, dtype: Dtype = "float32") -> Any:
    """A causal language model from a materialised folder, on the CPU, without a generation cache. Raises InputError."""
    transformers_logging.disable_progress_bar()  # two lines of noise for a second's work
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"base model {model_dir} cannot be loaded: {error}", remedy="Run prepare again or check model.path") from None
    for name in _SCALED_LOGITS:
        if getattr(model.config, name, None) not in (None, 1.0):
            raise InputError(
                f"base model {model_dir} changes its logits ({name}), which training here does not follow", remedy="Use another base"
            )
    model.config.use_cache = False
    return model


def new_adapter(model: Any, config: ModelConfig, *, seed: int) -> PeftModel:
    """A fresh LoRA adapter on the linear layers of the blocks; A is random from `seed`, B zero, so the model is unchanged at first.

    What has a name of its own (Phi 3 joins q, k and v in one layer, some models the experts of a block) has none; the log says which, and
    which share of the blocks' weights has one. Raises InputError when the model has none of LINEAR_LAYERS.
    """
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(LINEAR_LAYERS),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise InputError(
                f"the base model has none of the layers {', '.join(LINEAR_LAYERS)}: {error}", remedy="Use another base"
            ) from None
    bare, adapted_share = _find_bare_layers(adapted)
    if bare:
        _log.warning("layers of the base model get no adapter", layers=bare, adapted_share=adapted_share)
    return adapted


def _find_bare_layers(model: PeftModel) -> tuple[list[str], float]:
    """The names of what has no adapter in a model's blocks, and the share of their weights, vectors apart, that has one."""
    adapted = {id(_adapted_weight(layer)) for layer in model.modules() if isinstance(layer, LoraLayer)}
    sizes: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        owner, _, kind = name.replace(".base_layer", "").rpartition(".")
        layer = owner.rpartition(".")[2]
        of_a_block = weight.dim() > 1 and layer != "lm_head" and weight is not model.get_input_embeddings().weight
        if of_a_block and not weight.requires_grad:
            sizes["" if id(weight) in adapted else layer if kind == "weight" else f"{layer}.{kind}"] += weight.numel()
    return sorted(sizes.keys() - {""}), round(sizes[""] / max(sizes.total(), 1), 3)


def _adapted_weight(layer: Any) -> Tensor:
    """What an adapter's layer adds to: a linear layer's weight, or the experts of a block that are one tensor."""
    weight: Tensor = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    return weight


def load_adapter(model: Any, adapter_dir: Path, *, trainable: bool = False) -> PeftModel:
    """The model with a saved adapter on it. Raises InputError when it is incomplete, ArtifactError when it is damaged or does not fit."""
    check_adapter(adapter_dir)
    try:
        return PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=trainable, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"adapter {adapter_dir} does not fit the base model: {error}", remedy=TRAIN_AGAIN) from None


def load_policy(model_dir: Path, adapter_dir: Path | None, *, dtype: Dtype = "float32") -> Any:
    """Base and adapter for inference, on the GPU if there is one.

    In float32 the adapter is merged into the weights, which changes results by rounding only. Raises InputError when the base cannot be
    used, ArtifactError when the adapter does not fit it.
    """
    model = load_model(model_dir, dtype=dtype)
    if adapter_dir is not None:
        adapted = load_adapter(model, adapter_dir)
        model = adapted.merge_and_unload() if dtype == "float32" else adapted
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write weights and configuration; no model card, no machine's path, sorted keys: equal weights give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model)
    save_file(
        {name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"}
    )
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    text = json.dumps(config, default=sorted, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapter_weights(model: PeftModel, adapter_dir: Path, *, name: str) -> None:
    """Overwrite the weights of the adapter `name` with saved ones of the same shape.

    Raises InputError when these are missing, ArtifactError when they do not fit.
    """
    check_adapter(adapter_dir)
    try:
        set_peft_model_state_dict(model, load_file(adapter_dir / ADAPTER_WEIGHTS), adapter_name=name)
    except (RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"adapter {adapter_dir} does not fit the model's adapter: {error}", remedy=TRAIN_AGAIN) from None


def pass_cost_tokens(model: Any, *, gradients: bool = True) -> int:
    """What one more forward pass of this model costs, in padded tokens: how eagerly `bucket` cuts.

    A GPU takes the time of launching thousands of small kernels however few tokens there are (about 0.1 s for 30 layers with adapters
    and their gradients), in which it could compute some 3e12 / parameters tokens more (measured: docs/experiments.md).
    """
    if next(model.parameters()).device.type == "cpu":
        return PASS_COST_TOKENS if gradients else CPU_FORWARD_COST_TOKENS
    return max(PASS_COST_TOKENS, int((GPU_PASS_COST if gradients else GPU_FORWARD_COST) / model.num_parameters()))


def response_logps(model: Any, batch: Batch) -> Tensor:
    """log P of every scored token (N), float32. The vocabulary is computed at scored positions only, never for prompts or padding."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    device = causal.lm_head.weight.device
    last = causal.model.layers[-1]
    batch = batch.to(device)
    mixed = causal.lm_head.weight.dtype == torch.bfloat16
    short = isinstance(last, PLAIN_LAYERS) and not causal.is_gradient_checkpointing
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed), _scored_only(last, batch.predictors) if short else nullcontext():
        output = causal.model(input_ids=batch.input_ids, attention_mask=batch.allowed, position_ids=batch.positions, use_cache=False)
        hidden = output.last_hidden_state
        if not short:
            hidden = hidden.flatten(0, 1).index_select(0, batch.predictors)
        logits = causal.lm_head(hidden)
    logps: Tensor = -F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return logps


@contextmanager
def _scored_only(layer: Any, predictors: Tensor) -> Iterator[None]:
    """Let the last layer give its output at scored positions only: (N, width) instead of (B, T, width).

    Nobody attends to the last layer's output, so what it computes after attention for a prompt is thrown away otherwise: a sixth of
    the work of the demo's four layers.
    """

    def forward(hidden_states: Tensor, **context: Any) -> Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **context)
        scored: Tensor = (hidden_states + attended).flatten(0, 1).index_select(0, predictors)
        changed: Tensor = layer.mlp(layer.post_attention_layernorm(scored))
        return scored + changed

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def fold_small_adapters(model: PeftModel) -> int:
    """Compute W + s·BA before the product where the rank is not small beside the layer; returns how many layers.

    The same function up to rounding, dropout excepted (those layers are left alone). On the demo's 128-wide layers the three products
    and two additions of LoRA over every token cost more than the layer itself; at the width of a real model they do not.
    """
    folded = 0
    for layer in model.modules():
        if isinstance(layer, LoraLinear) and _is_small(layer):
            layer.forward = _Folded(layer)
            folded += 1
    return folded


def _is_small(layer: LoraLayer) -> bool:
    dropout = layer.lora_dropout["default"]
    plain = layer.get_base_layer().weight.dtype == torch.float32 and isinstance(dropout, torch.nn.Identity)
    return plain and layer.r["default"] * 16 >= min(layer.in_features, layer.out_features)


class _Folded:
    """Forward of one LoRA layer as a single product."""

    def __init__(self, layer: Any) -> None:
        self.base = layer.get_base_layer()
        self.down, self.up, self.scaling = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]

    def __call__(self, inputs: Tensor) -> Tensor:
        weight = torch.addmm(self.base.weight, self.up.weight, self.down.weight, alpha=self.scaling)
        return F.linear(inputs, weight, self.base.bias)
