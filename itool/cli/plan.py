"""`itoolctl plan`: what would run and why, what is reused, and what it should cost. Starts nothing, writes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from itool.cli.echo import echo
from itool.cli.options import (
    ConfigOption,
    CountOption,
    MethodOption,
    Output,
    OutputOption,
    RootOption,
    RunOption,
    SetOption,
    build_config,
    print_json,
)
from itool.cli.tables import columns, duration, folded, terminal_width
from itool.errors import ArtifactError

if TYPE_CHECKING:
    from itool.artifacts.manifest import Manifest
    from itool.artifacts.resolve import Resolution
    from itool.stages import StageId


@dataclass(frozen=True)
class Cost:
    """Mean of what a stage took where it was measured."""

    seconds: float
    gpu_seconds: float


def plan(
    *,
    config: ConfigOption = None,
    n: CountOption = None,
    sets: SetOption = None,
    method: MethodOption = None,
    run: RunOption = None,
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Say which stages would run and why, and which are reused. Starts nothing."""
    from itool.artifacts.resolve import observe, resolve_observed  # noqa: PLC0415
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.cluster.controller import require_reused_run  # noqa: PLC0415

    settings = build_config(config, sets, run=run, root=root, n=n, method=method)
    store = open_store(settings.root, settings.store)
    require_reused_run(store, settings)
    observed = observe(store, settings)
    resolutions = resolve_observed(settings, observed)
    costs = measured_costs(observed.manifests.values())
    if output is Output.json:
        print_json(_document(settings.run, resolutions, costs))
        return
    rows = [[str(stage), _action(found), found.reason, _expected(stage, found, costs)] for stage, found in resolutions.items()]
    width = terminal_width()
    echo(columns(["stage", "", "why", "expected"], rows, fold="why", width=width))
    echo("\n".join(["", *folded(_summary(resolutions, costs), width)]))


def measured_costs(manifests: Iterable[Manifest]) -> dict[str, Cost]:
    """What each kind of stage has cost so far, in any iteration of this run or the one it reuses."""
    by_name: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in manifests:
        by_name[manifest.stage].append(manifest)
    return {
        name: Cost(fmean(manifest.seconds for manifest in found), fmean(manifest.gpu_seconds for manifest in found))
        for name, found in by_name.items()
    }


def _action(found: Resolution) -> str:
    """What `iterate` does at this stage: it never replaces a damaged artifact."""
    return "reuse" if found.done else "stop" if found.state == "damaged" else "run"


def _expected(stage: StageId, found: Resolution, costs: Mapping[str, Cost]) -> str:
    if _action(found) != "run":
        return ""
    return f"about {duration(costs[stage.name].seconds)}" if stage.name in costs else "not measured yet"


def _summary(resolutions: Mapping[StageId, Resolution], costs: Mapping[str, Cost]) -> str:
    due = [stage for stage, found in resolutions.items() if _action(found) == "run"]
    damaged = [stage for stage, found in resolutions.items() if _action(found) == "stop"]
    if damaged:
        return f"The run would stop at {damaged[0]} with exit code {ArtifactError.exit_code}."
    if not due:
        return f"Nothing to run: all {len(resolutions)} stages are up to date."
    text = f"{len(due)} of {len(resolutions)} stages to run, {len(resolutions) - len(due)} reused"
    known = [costs[stage.name] for stage in due if stage.name in costs]
    if known:
        text += f"; about {duration(sum(cost.seconds for cost in known))}"
        gpu_seconds = sum(cost.gpu_seconds for cost in known)
        text += f", {gpu_seconds / 3600:.2f} GPU-hours" if gpu_seconds else ""
        text += f", without {len(due) - len(known)} that were never measured" if len(known) < len(due) else ""
    return text + "."


def _document(run: str, resolutions: Mapping[StageId, Resolution], costs: Mapping[str, Cost]) -> dict[str, object]:
    return {"run": run, "stages": [_entry(stage, found, costs.get(stage.name)) for stage, found in resolutions.items()]}


def _entry(stage: StageId, found: Resolution, measured: Cost | None) -> dict[str, object]:
    action = _action(found)
    cost = measured if action == "run" else None
    return {
        "name": stage.name,
        "iteration": stage.iteration,
        "action": action,
        "state": found.state,
        "reason": found.reason,
        "key": found.key,
        "prefix": found.prefix,
        "expected_seconds": cost.seconds if cost else None,
        "expected_gpu_seconds": cost.gpu_seconds if cost else None,
    }
