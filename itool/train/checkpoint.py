"""A training run between two updates, as files: adapter, optimiser, schedule, random state, position and the log so far.

Ours instead of transformers' own, whose `train()` returns normally after a SIGTERM and whose last checkpoint may be half-written.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from itool.logs import get_logger
from itool.train.hooks import TrainingLog
from itool.train.model import ADAPTER_WEIGHTS, save_adapter

_STATE, _LOG = "training_state.pt", "training_log.json"
_log = get_logger(__name__)


def write_checkpoint(
    folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, schedule: Any, *, log: TrainingLog, identity: str
) -> None:
    """Everything that the next update depends on, and the `identity` of data and settings, by which another training's is known."""
    save_adapter(model, folder / "adapter")
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "cpu_rng": torch.get_rng_state(), "cuda_rng": cuda}
    torch.save(state, folder / _STATE)
    (folder / _LOG).write_text(json.dumps({"identity": identity, **asdict(log)}), encoding="utf-8")


def read_checkpoint(
    folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, schedule: Any, identity: str
) -> tuple[TrainingLog, dict[str, Any]] | None:
    """Put model, optimiser and schedule back; returns the log and the random state for `restore_random_state`.

    None, and nothing is touched, when it is no checkpoint of this training: another version of the code wrote it.
    """
    try:
        document = json.loads((folder / _LOG).read_text(encoding="utf-8"))
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        weights = load_file(folder / "adapter" / ADAPTER_WEIGHTS)
    except (FileNotFoundError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        _log.warning("checkpoint skipped", reason=f"it cannot be read: {error}")
        return None
    if document.pop("identity", None) != identity:
        _log.warning("checkpoint skipped", reason="it belongs to other data or settings")
        return None
    if _shapes(weights) != _shapes(get_peft_model_state_dict(model)):
        _log.warning("checkpoint skipped", reason="its adapter does not fit the model's")
        return None
    set_peft_model_state_dict(model, weights)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return TrainingLog(**document), state


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the random streams (LoRA dropout) where the checkpoint left them."""
    torch.set_rng_state(state["cpu_rng"])
    if state["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"])
