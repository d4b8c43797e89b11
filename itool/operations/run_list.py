"""A run as one line: its state as `status` says it, how far it is, the best accuracy so far, and who works on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from itool.artifacts.resolve import Resolution, resolve
from itool.artifacts.store import Store
from itool.cluster.session import open_lease
from itool.config import RunConfig
from itool.errors import ItoolError
from itool.evaluate.intervals import latest_of_the_best
from itool.names import Method
from itool.operations.overview import RunObjects, stage_rows
from itool.operations.run_objects import read_objects
from itool.operations.run_status import State, run_state
from itool.stages import StageId

if TYPE_CHECKING:
    from itool.cluster.client import Cluster


@dataclass(frozen=True)
class RunLine:
    """One run. `done` of `stages` are done; `problem` says why the cluster could not be asked."""

    run: str
    state: State
    backend: str
    method: Method
    iterations: int
    iterations_done: int
    done: int
    stages: int
    best_iteration: int | None
    best_accuracy: float | None
    controller: dict[str, Any] | None
    problem: str | None = None


def run_line(config: RunConfig, store: Store, open_cluster: Callable[[], Cluster]) -> RunLine:
    """How a run stands. The cluster is opened only where its Jobs decide the state: the run is not done, and nobody holds it."""
    resolutions, holder = resolve(store, config), open_lease(store, config.run).holder()
    done = sum(found.done for found in resolutions.values())
    objects, problem = RunObjects(at=0.0), None
    if config.runtime.backend == "kubernetes" and holder is None and done < len(resolutions):
        try:
            objects = read_objects(open_cluster(), store, config)
        except ItoolError as error:
            problem = str(error)
    best = best_so_far(resolutions)
    return RunLine(
        run=config.run,
        state=run_state(stage_rows(config, resolutions, objects), active=holder is not None),
        backend=config.runtime.backend,
        method=config.method,
        iterations=config.iterations,
        iterations_done=sum(resolutions[StageId(turn, "evaluate")].done for turn in range(1, config.iterations + 1)),
        done=done,
        stages=len(resolutions),
        best_iteration=best[0] if best else None,
        best_accuracy=best[1] if best else None,
        controller=holder,
        problem=problem,
    )


def best_so_far(resolutions: Mapping[StageId, Resolution]) -> tuple[int, float] | None:
    """The iteration whose adapter a report would keep (`latest_of_the_best` on the validation set), and its held-out accuracy."""
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
