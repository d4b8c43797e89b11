"""`itoolctl logs`: what a stage wrote, while it runs and afterwards."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from itool.cli.options import ConfigOption, RootOption, RunOption, existing_config, note

if TYPE_CHECKING:
    from itool.config import RunConfig


def logs(
    *,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of a stage, as in `score` or `i2/score`.")],
    iteration: Annotated[
        int | None, typer.Option("--iteration", "-k", min=0, help="Iteration; the last one that ran when left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run stops.")] = False,
    run: RunOption = None,
    config: ConfigOption = None,
    root: RootOption = None,
) -> None:
    """Print the log of a stage's newest attempt."""
    name, wanted = parse_stage(stage, iteration)
    settings = existing_config(run, root, config)
    offsets: dict[str, int] = {}
    while True:
        active = _is_active(settings)
        found = _print_new(settings, name, wanted, offsets)
        if not found and not (follow and active):
            raise _nothing(settings, stage)
        if not follow or not active:
            return
        time.sleep(0.2)


def parse_stage(stage: str, iteration: int | None) -> tuple[str, int | None]:
    """`i2/score` or `score` -> name and iteration. Raises ConfigError for a name that is no stage."""
    from itool.errors import ConfigError  # noqa: PLC0415
    from itool.stages import STAGES  # noqa: PLC0415

    prefix, slash, name = stage.rpartition("/")
    if slash and prefix.startswith("i") and prefix[1:].isdigit():
        iteration = int(prefix[1:])
    elif slash:
        name = stage
    if name not in STAGES:
        raise ConfigError(f"{stage!r} is no stage", remedy=f"Stages are {', '.join(STAGES)}, optionally as i2/score")
    return name, iteration


def _print_new(settings: RunConfig, name: str, iteration: int | None, offsets: dict[str, int]) -> bool:
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.attempt_logs import find_logs  # noqa: PLC0415

    store = open_store(settings.root, settings.store)
    found = find_logs(settings, store, name, iteration)
    for log in found:
        if log.name not in offsets and len(found) > 1:
            note(f"== {log.name}")
        output = log.read(store, settings.run, offsets.get(log.name, 0))
        offsets[log.name] = offsets.get(log.name, 0) + len(output)
        sys.stdout.buffer.write(output)
    sys.stdout.flush()
    return bool(found)


def _is_active(settings: RunConfig) -> bool:
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.session import open_lease  # noqa: PLC0415

    return open_lease(open_store(settings.root, settings.store), settings.run).holder() is not None


def _nothing(settings: RunConfig, stage: str) -> Exception:
    from itool.errors import InputError  # noqa: PLC0415

    return InputError(f"run {settings.run} has no log of {stage}", remedy="`itoolctl status` says what has run")
