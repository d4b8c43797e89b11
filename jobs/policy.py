"""What the stages that ask the policy share: its opening, and the folder of the model that answers. No stage of its own."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from itool.artifacts.stage import Stage
from itool.policy.opening import open_policy
from itool.policy.protocol import Policy


def model_folder(stage: Stage) -> Path:
    """The base model's folder. Its weights, by far the largest input, are left in the store where a server elsewhere has them."""
    return stage.path("data", "model/", except_suffix="" if stage.config.policy.needs_weights else ".safetensors")


def open_stage_policy(stage: Stage) -> AbstractAsyncContextManager[Policy]:
    """The policy with the stage's adapter."""
    config = stage.config
    return open_policy(model_folder(stage), stage.path("adapter", "adapter/"), config.model, config.policy, should_stop=stage.should_stop)
