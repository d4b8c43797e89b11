"""`itoolctl status`, `runs` and `cancel`: what is there, what works on it, and how to stop it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from itool.cli.options import ConfigOption, Output, OutputOption, RootOption, RunArgument, existing_config, note, print_json, run_names
from itool.cli.tables import columns, duration

if TYPE_CHECKING:
    from itool.artifacts.resolve import Resolution
    from itool.config import RunConfig
    from itool.stages import StageId

CANCEL_WAIT_SECONDS = 90.0


def status(run: RunArgument = None, config: ConfigOption = None, root: RootOption = None, output: OutputOption = Output.text) -> None:
    """Show how far a run is: every stage, who works on it, the progress of what runs."""
    from itool.artifacts.resolve import resolve  # noqa: PLC0415
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.session import open_lease  # noqa: PLC0415

    settings = existing_config(run, root, config)
    store = open_store(settings.root, settings.store)
    holder = open_lease(store, settings.run).holder()
    resolutions = resolve(store, settings)
    rows = [_row(stage, found) for stage, found in resolutions.items()]
    _mark_current(settings, rows, active=holder is not None)
    if output is Output.json:
        print_json({"run": settings.run, "controller": holder, "stages": rows})
        return
    shown = [[row["stage"], row["state"], _time(row["seconds"]), row["attempt"], row["progress"], row["reason"]] for row in rows]
    typer.echo(columns(["stage", "state", "time", "attempt", "progress", ""], shown, right=["time", "attempt"]))
    done = sum(found.done for found in resolutions.values())
    worker = f"process {holder.get('pid')} on {holder.get('host')} works on it" if holder else "nothing works on it"
    typer.echo(f"\nrun {settings.run}: {done} of {len(rows)} stages done; {worker}")


def runs(root: RootOption = None, output: OutputOption = Output.text) -> None:
    """List the runs under a root."""
    from itool.artifacts.resolve import resolve  # noqa: PLC0415
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.session import open_lease  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    for name in run_names(root):
        settings = existing_config(name, root)
        store = open_store(settings.root, settings.store)
        resolutions = resolve(store, settings)
        done = sum(found.done for found in resolutions.values())
        active = open_lease(store, name).holder() is not None
        rows.append(
            {
                "run": name,
                "method": settings.method,
                "iterations": settings.iterations,
                "done": done,
                "stages": len(resolutions),
                "active": active,
            }
        )
    if output is Output.json:
        print_json(rows)
        return
    if not rows:
        note("There is no run yet. Start one with `itoolctl iterate`.")
        return
    shown = [
        [row["run"], row["method"], row["iterations"], f"{row['done']}/{row['stages']}", "running" if row["active"] else ""] for row in rows
    ]
    typer.echo(columns(["run", "method", "iterations", "stages", ""], shown, right=["iterations", "stages"]))


def cancel(run: RunArgument = None, root: RootOption = None) -> None:
    """Stop a run after its stages have saved a checkpoint. Artifacts stay; `itoolctl iterate` resumes."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.session import open_lease  # noqa: PLC0415
    from itool.errors import DependencyError  # noqa: PLC0415

    settings = existing_config(run, root)
    lease = open_lease(open_store(settings.root, settings.store), settings.run)
    if not lease.request_stop():
        note(f"Nothing works on run {settings.run}.")
        return
    deadline = time.monotonic() + CANCEL_WAIT_SECONDS
    while lease.holder() is not None:
        if time.monotonic() > deadline:
            raise DependencyError(f"run {settings.run} was asked to stop but still runs", remedy="Wait, and see `itoolctl status`")
        time.sleep(0.1)
    note(f"Run {settings.run} has stopped. `itoolctl iterate` resumes it.")


def _row(stage: StageId, found: Resolution) -> dict[str, Any]:
    return {
        "stage": str(stage),
        "name": stage.name,
        "iteration": stage.iteration,
        "state": found.state,
        "reason": "" if found.done and found.reason == "up to date" else found.reason,
        "key": found.key,
        "seconds": found.manifest.seconds if found.manifest else None,
        "startup_seconds": found.manifest.startup_seconds if found.manifest else None,
        "attempt": None,
        "progress": None,
    }


def _mark_current(config: RunConfig, rows: list[dict[str, Any]], *, active: bool) -> None:
    """The first stage that is not done is where the run stands: running with its progress, or failed with its log's last word."""
    from itool.cluster.attempt_logs import last_word  # noqa: PLC0415

    current = next((row for row in rows if row["state"] != "done"), None)
    if current is None:
        return
    word = last_word(config, current["name"], current["iteration"])
    if word is None:
        return
    current["attempt"] = word.attempt
    if active:
        current.update(state="running", progress=word.progress)
    elif word.message:
        current["reason"] = f"{current['reason']}; last attempt: {word.message}"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)
