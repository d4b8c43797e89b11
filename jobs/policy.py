"""What the stages that ask the policy share: its opening, the folder of the model that answers, blocks of examples. No stage of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

from itool.artifacts.stage import Stage
from itool.evaluate.held_out import OnProgress
from itool.policy.opening import open_policy
from itool.policy.protocol import Policy
from itool.records import Example, Record

STOP_LOOK_SECONDS = 0.2
"""How often a block that is being measured looks whether it shall stop."""

Measured = TypeVar("Measured", bound=Record)
Ask = Callable[[Sequence[Example], OnProgress], Awaitable[list[Measured]]]
"""Measures a block: one record per example, in their order."""


def model_folder(stage: Stage) -> Path:
    """The base model's folder. Its weights, by far the largest input, are left in the store where a server elsewhere has them."""
    return stage.path("data", "model/", except_suffix="" if stage.config.policy.needs_weights else ".safetensors")


def open_stage_policy(stage: Stage) -> AbstractAsyncContextManager[Policy]:
    """The policy with the stage's adapter."""
    config = stage.config
    return open_policy(model_folder(stage), stage.path("adapter", "adapter/"), config.model, config.policy, should_stop=stage.should_stop)


async def measure_blocks(
    stage: Stage,
    policy: Policy,
    blocks: Iterable[Sequence[Example]],
    found: dict[str, Measured],
    ask: Ask[Measured],
    *,
    reached: Callable[[], None],
    total: int,
    before: int = 0,
) -> None:
    """Measure block by block into `found`, by example id, without the blocks that are there already.

    Before each block the policy forgets: an answer is computed in the same company and from the same cache, hence with the same
    rounding, whatever an earlier attempt has measured. Before each, since after the last nothing is left to do, `reached` is called and
    Interrupted raised when the stage is to stop. Progress is of `before` and the found ones, out of `total`.
    """
    for block in blocks:
        if all(example.id in found for example in block):
            continue
        reached()
        stage.raise_if_stopped()
        policy.forget()
        records = await _unless_stopped(stage, ask(block, _showing(stage, before + len(found), total)))
        found.update((example.id, record) for example, record in zip(block, records, strict=True))


async def _unless_stopped(stage: Stage, work: Awaitable[list[Measured]]) -> list[Measured]:
    """What the work gives. It is given up soon after the stage is to stop, though a server may be silent for policy.timeout_seconds."""
    running = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([running], timeout=STOP_LOOK_SECONDS))[0]:
            stage.raise_if_stopped()
    finally:
        running.cancel()
        await asyncio.wait([running])
    return running.result()


def _showing(stage: Stage, before: int, total: int) -> OnProgress:
    def show(done: int, _: int) -> None:
        stage.raise_if_stopped()
        stage.progress(before + done, total, "examples")

    return show
