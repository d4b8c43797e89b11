"""`itoolctl runs`: what there is under a root, how far, how good, and who works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from itool.cli.options import Output, OutputOption, RootOption, existing_config, note, print_json, run_names
from itool.cli.tables import columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itool.artifacts.resolve import Resolution
    from itool.stages import StageId


def runs(root: RootOption = None, output: OutputOption = Output.text) -> None:
    """List the runs under a root: state, iterations, best accuracy so far, who works on them."""
    rows = [_row(name, root) for name in run_names(root)]
    if output is Output.json:
        print_json(rows)
        return
    if not rows:
        note("There is no run yet. Start one with `itoolctl iterate`.")
        return
    shown = [
        [
            row["run"],
            row["state"],
            row["method"],
            f"{row['iterations_done']}/{row['iterations']}",
            f"{row['done']}/{row['stages']}",
            None if row["best_accuracy"] is None else f"{100 * row['best_accuracy']:.1f} % (iteration {row['best_iteration']})",
            _who(row["controller"]),
        ]
        for row in rows
    ]
    header = ["run", "state", "method", "iterations", "stages", "best accuracy", "works on it"]
    typer.echo(columns(header, shown, right=["iterations", "stages"]))


def best_so_far(resolutions: Mapping[StageId, Resolution]) -> tuple[int, float] | None:
    """The iteration whose adapter a report would keep (`latest_of_the_best` on the validation set), and its held-out accuracy."""
    from itool.evaluate.intervals import latest_of_the_best  # noqa: PLC0415

    measured: dict[int, dict[str, Any]] = {}
    validation_examples = 0
    for stage, resolution in resolutions.items():
        metrics = resolution.manifest.metrics if resolution.manifest else {}
        if stage.name == "prepare":
            validation_examples = metrics.get("examples", {}).get("validation", 0)
        elif stage.name == "evaluate" and "held_out" in metrics:
            measured[stage.iteration] = metrics
    validated = {iteration: metrics["validation"] for iteration, metrics in measured.items() if "validation" in metrics}
    iteration = latest_of_the_best(validated, validation_examples) if validated else max(measured, default=None)
    return None if iteration is None else (iteration, float(measured[iteration]["held_out"]))


def _row(name: str, root: str | None) -> dict[str, Any]:
    from itool.artifacts.resolve import resolve  # noqa: PLC0415
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.session import open_lease  # noqa: PLC0415
    from itool.stages import StageId  # noqa: PLC0415

    settings = existing_config(name, root)
    store = open_store(settings.root, settings.store)
    resolutions = resolve(store, settings)
    holder = open_lease(store, name).holder()
    done = sum(found.done for found in resolutions.values())
    turns = range(1, settings.iterations + 1)
    best = best_so_far(resolutions)
    return {
        "run": name,
        "state": "done" if done == len(resolutions) else "running" if holder else "stopped",
        "backend": settings.runtime.backend,
        "method": settings.method,
        "iterations": settings.iterations,
        "iterations_done": sum(resolutions[StageId(turn, "evaluate")].done for turn in turns),
        "done": done,
        "stages": len(resolutions),
        "best_iteration": best[0] if best else None,
        "best_accuracy": best[1] if best else None,
        "controller": holder,
    }


def _who(holder: dict[str, Any] | None) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}" if holder else ""
