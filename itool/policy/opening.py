"""Which policy a configuration asks for. Imports an engine only when it is used: the vLLM client needs no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from itool.config import ModelConfig, PolicyConfig
from itool.policy.protocol import Policy


@asynccontextmanager
async def open_policy(
    model_dir: Path, adapter_dir: Path | None, model: ModelConfig, policy: PolicyConfig, *, threads: int = 0
) -> AsyncIterator[Policy]:
    """The policy that `policy.backend` names, ready to answer inside `async with`, and gone after it.

    `model_dir` is a materialised base model, `adapter_dir` a LoRA adapter as PEFT writes it (None: the base alone), `threads` the CPU
    threads of the engine (0: its own choice). Raises InputError when a folder cannot be used, DependencyError when a server does not start.
    """
    from itool.policy.embedded import EmbeddedPolicy  # noqa: PLC0415 - torch, only where this policy runs

    async with EmbeddedPolicy(model_dir, adapter_dir, model=model, policy=policy, threads=threads) as embedded:
        yield embedded
