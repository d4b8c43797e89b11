"""What a report is made of, and how it is read from the artifacts of a run.

`ReportInputs` holds manifests and records only; `load_inputs` fills it from manifests and a function that gives the local path of a stage's
file. A run that is not finished loads as well: what is missing is simply not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itool.artifacts.inputs import RecordT, numbered_lines, read_records
from itool.artifacts.manifest import Manifest
from itool.config import RunConfig
from itool.names import StageName
from itool.records import Example, ExamplePerplexity, PassCount, Prediction, PreferencePair, Score, SearchTree
from itool.stages import STAGES

DATASETS = ("held_out", "validation")


@dataclass(frozen=True)
class ReportInputs:
    """The manifests of a run's finished stages, in running order, and its records by iteration.

    `predictions`, `pass_counts` and `training` are by (iteration, dataset or stage).
    """

    config: RunConfig
    stages: tuple[Manifest, ...] = ()
    predictions: Mapping[tuple[int, str], list[Prediction]] = field(default_factory=dict)
    pass_counts: Mapping[tuple[int, str], list[PassCount]] = field(default_factory=dict)
    perplexities: Mapping[int, list[ExamplePerplexity]] = field(default_factory=dict)
    scores: Mapping[int, list[Score]] = field(default_factory=dict)
    trees: Mapping[int, list[SearchTree]] = field(default_factory=dict)
    pairs: Mapping[int, list[PreferencePair]] = field(default_factory=dict)
    training: Mapping[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)
    examples: Mapping[str, Example] = field(default_factory=dict)
    held_out_digest: str | None = None
    """SHA-256 of the held-out examples: runs with the same are compared example by example."""

    def stage(self, name: StageName, iteration: int) -> Manifest | None:
        """A finished stage, or None."""
        return next((m for m in self.stages if (m.stage, m.iteration) == (name, iteration)), None)


def load_inputs(config: RunConfig, manifests: Iterable[Manifest], path: Callable[[str, str], Path]) -> ReportInputs:
    """Read the files of every finished stage.

    `path(role, name)` gives the local path of a file that a stage's manifest lists (`i1/score`, `scores.jsonl`), with its content checked.
    Raises InputError for a line that is not such a record.
    """
    stages = sorted(manifests, key=lambda m: (m.iteration, list(STAGES).index(m.stage)))

    def of(*names: StageName) -> list[Manifest]:
        return [manifest for manifest in stages if manifest.stage in names]

    def records(manifest: Manifest, name: str, kind: type[RecordT]) -> list[RecordT]:
        return read_records(path(str(manifest.id), name), kind)

    def rows(manifest: Manifest, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in numbered_lines(path(str(manifest.id), name))]

    return ReportInputs(
        config=config,
        stages=tuple(stages),
        predictions={(m.iteration, name): records(m, f"{name}.jsonl", Prediction) for m in of("evaluate") for name in DATASETS},
        pass_counts={(m.iteration, "held_out"): records(m, "pass_counts.jsonl", PassCount) for m in of("evaluate")},
        perplexities={m.iteration: records(m, "perplexities.jsonl", ExamplePerplexity) for m in of("evaluate")},
        scores={m.iteration: records(m, "scores.jsonl", Score) for m in of("score")},
        trees={m.iteration: records(m, "trees.jsonl", SearchTree) for m in of("generate")},
        pairs={m.iteration: records(m, "pairs.jsonl", PreferencePair) for m in of("generate")},
        training={(m.iteration, m.stage): rows(m, "training.jsonl") for m in of("warmup", "dpo")},
        examples={example.id: example for m in of("prepare") for example in records(m, "buffer.jsonl", Example)},
        held_out_digest=next((m.files["held_out.jsonl"].sha256 for m in of("prepare")), None),
    )
