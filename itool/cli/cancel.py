"""`itoolctl cancel`: stop a run; its artifacts and checkpoints stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itool.cli.options import BackendOption, ConfigOption, Output, OutputOption, RootOption, RunArgument, existing_config, note, print_json

if TYPE_CHECKING:
    from itool.config import RunConfig


def cancel(
    *,
    run: RunArgument = None,
    config: ConfigOption = None,
    root: RootOption = None,
    backend: BackendOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Stop a run, and vLLM with it, after a checkpoint. Artifacts stay; `itoolctl iterate --run RUN` resumes."""
    from itool.commands import resume  # noqa: PLC0415

    settings = existing_config(run, root, config, backend=backend, known_keys_only=True)
    stopped = stop(settings)
    if output is Output.json:
        print_json({"run": settings.run, "stopped": stopped})
    elif stopped:
        note(f"Run {settings.run} has stopped. {resume(settings.run, settings.root)} resumes it.")
    else:
        note(f"Nothing works on run {settings.run}.")


def stop(settings: RunConfig) -> bool:
    """Stop it where it runs; False when nothing works on it."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.client import open_cluster  # noqa: PLC0415
    from itool.operations.cancelling import cancel_here, cancel_in_cluster  # noqa: PLC0415

    store = open_store(settings.root, settings.store)
    if settings.runtime.backend == "kubernetes":
        return cancel_in_cluster(settings, store, open_cluster(settings.kubernetes.namespace))
    return cancel_here(settings, store)
