"""`itoolctl wait`: for scripts, until a run has ended; what became of it is the exit code."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from itool.cli.options import BackendOption, ConfigOption, Output, OutputOption, RootOption, RunArgument, existing_config, note, print_json
from itool.cli.status import as_document, open_reader

if TYPE_CHECKING:
    from itool.operations.run_status import RunStatus, StatusReader

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
"""So long the store or the cluster may be away, as for a controller."""


def wait(
    *,
    run: RunArgument = None,
    config: ConfigOption = None,
    root: RootOption = None,
    backend: BackendOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="Longest wait; without it there is no end.")
    ] = float("inf"),
    output: OutputOption = Output.text,
) -> None:
    """Wait until a run is done, or until nobody works on it any more. Starts nothing.

    Ends with 0 when it is done, 65 when an artifact is damaged, 1 when it failed or stopped, 69 after the timeout, a long outage, or
    kubernetes.pending_seconds in which the chart's controller cannot start.
    """
    settings = existing_config(run, root, config, backend=backend, hurried=True)
    found = wait_for_end(open_reader(settings), timeout)
    if output is Output.json:
        print_json(as_document(found))
    if found.state != "done":
        raise _ending(found, settings.root)
    note(f"Run {found.run} is done.")


def wait_for_end(reader: StatusReader, timeout: float) -> RunStatus:
    """The run as it stands at its end. Raises DependencyError after `timeout` seconds or a long outage, or where no controller can start.

    Only what two looks find is an end that nobody wanted: a controller may finish between the look at the artifacts and that at the lease.
    After an outage it has time to renew a lease that has expired meanwhile.
    """
    from itool.cluster.leases import TTL_SECONDS  # noqa: PLC0415
    from itool.errors import DependencyError  # noqa: PLC0415

    began = answered = renewed_by = startable = time.monotonic()
    told, ended = -1, False
    while True:
        found, now = reader.read(), time.monotonic()
        if reader.error is not None and (not isinstance(reader.error, DependencyError) or now - answered >= PATIENCE_SECONDS):
            raise reader.error
        if reader.error is not None:
            renewed_by = now + TTL_SECONDS
        else:
            idle, answered = found.state != "running" and not reader.controller_comes and now >= renewed_by, now
            if found.state == "done" or (idle and ended):
                return found
            ended = idle
            stuck = next((pod.reason for pod in found.controller_pods if pod.state == "pending"), "")
            startable = startable if stuck and found.state != "running" else now
            if now - startable >= reader.config.kubernetes.pending_seconds:
                raise _cannot_start(found.run, now - startable, stuck)
            if found.done != told:
                note(f"run {found.run}: {found.done} of {len(found.stages)} stages done")
            told = found.done
        if now - began >= timeout:
            raise DependencyError(f"run {found.run} has not ended within {timeout:g} s", remedy="Wait again, or see `itoolctl status`")
        time.sleep(min(LOOK_SECONDS, began + timeout - now))


def _cannot_start(run: str, seconds: float, reason: str) -> Exception:
    from itool.errors import DependencyError  # noqa: PLC0415

    message = f"the controller of run {run} could not start within {seconds:.0f} s (kubernetes.pending_seconds): {reason}"
    return DependencyError(message, remedy="Correct what keeps it; it starts by itself, or after `helm upgrade`")


def _ending(found: RunStatus, root: str) -> Exception:
    """Why a run that is not done goes on no more, and what goes on with it."""
    from itool.commands import resume  # noqa: PLC0415
    from itool.errors import ArtifactError, ItoolError  # noqa: PLC0415

    row = next((row for row in found.stages if row.state in ("failed", "damaged")), None)
    row = row or next(row for row in found.stages if row.state != "done")
    if row.state == "damaged":
        return ArtifactError(row.reason)
    how = "failed" if found.state == "failed" else "has stopped"
    return ItoolError(f"run {found.run} {how} at {row.stage}: {row.reason}", remedy=f"{resume(found.run, root)} goes on")
