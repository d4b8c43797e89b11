"""Which policy a configuration asks for. Torch is imported only where the embedded policy runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import gettempdir

from itool.config import ModelConfig, PolicyConfig
from itool.policy.model_folder import check_adapter, read_model_folder
from itool.policy.protocol import Policy
from itool.policy.server import LocalVllmServer
from itool.policy.vllm import VllmPolicy


@asynccontextmanager
async def open_policy(
    model_dir: Path,
    adapter_dir: Path | None,
    model: ModelConfig,
    policy: PolicyConfig,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Policy]:
    """The policy that `policy.backend` names, ready to answer inside `async with`, and gone after it.

    `model_dir` is a materialised base model (without its weights where `policy.needs_weights` is False), `adapter_dir` a LoRA adapter as
    PEFT writes it (None: the base alone). `should_stop` is asked while a server is waited for. Raises InputError when a folder cannot be
    used, ConfigError when the backend cannot serve this model or refuses the key, DependencyError when a server does not start or answer,
    Interrupted when `should_stop` says so.
    """
    if policy.backend == "embedded":
        from itool.policy.embedded import EmbeddedPolicy  # noqa: PLC0415 - torch, only where this policy runs

        async with EmbeddedPolicy(model_dir, adapter_dir, model=model, policy=policy) as embedded:
            yield embedded
        return
    folder = read_model_folder(model_dir, context_tokens=model.context_tokens, weights=policy.needs_weights)
    if adapter_dir is not None:
        check_adapter(adapter_dir)
    async with AsyncExitStack() as stack:
        url, failure, key = policy.url, _never_fails, None
        if url is None:
            key = secrets.token_urlsafe()  # every user of this machine reaches its port, and could load adapters
            log_path = Path(gettempdir()) / f"itool-vllm-{os.getpid()}-{secrets.token_hex(4)}.log"
            server = LocalVllmServer(folder, log_path, model=model, policy=policy, key=key, should_stop=should_stop)
            await stack.enter_async_context(server)
            url, failure = server.url, server.failure
        client = VllmPolicy(url, folder, adapter_dir, policy=policy, key=key, failure=failure, should_stop=should_stop)
        yield await stack.enter_async_context(client)


def _never_fails() -> str | None:
    """A remote server's end cannot be seen from here."""
    return None
