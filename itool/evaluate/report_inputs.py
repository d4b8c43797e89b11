"""What a report is made of, and how it is read from the artifacts of a run.

`ReportInputs` holds records only; `load_inputs` fills it from manifests and a function that gives the local path of a stage's file. A
run that is not finished loads as well: what is missing is simply not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from itool.artifacts.inputs import numbered_lines
from itool.artifacts.manifest import Manifest
from itool.config import RunConfig
from itool.errors import ArtifactError
from itool.records import Example, ExamplePerplexity, PassCount, Prediction, PreferencePair, Record, Score, SearchTree
from itool.stages import STAGES

AnyRecord = TypeVar("AnyRecord", bound=Record)
DATASETS = ("held_out", "validation")


@dataclass(frozen=True)
class StageFacts:
    """What the report says of a finished stage, taken from its manifest."""

    name: str
    iteration: int
    seconds: float = 0.0
    startup_seconds: float = 0.0
    tokens: int = 0
    incoming: int = 0
    kept: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class ReportInputs:
    """The records of a run by iteration; `predictions`, `pass_counts` and `training` by (iteration, dataset or stage)."""

    config: RunConfig
    stages: tuple[StageFacts, ...] = ()
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

    def stage(self, name: str, iteration: int) -> StageFacts | None:
        """A finished stage, or None."""
        return next((s for s in self.stages if (s.name, s.iteration) == (name, iteration)), None)


def load_inputs(
    config: RunConfig, manifests: Iterable[Manifest], path: Callable[[str, str], Path], *, explorer: bool = True
) -> ReportInputs:
    """Read the files of every finished stage.

    `path(role, name)` gives the local path of a file that a stage's manifest lists (`i1/score`, `scores.jsonl`). Without `explorer` the
    examples, needed only to show trees, are not read. Raises ArtifactError for a line that is not such a record.
    """
    reader = _Reader(path)
    finished = sorted((m for m in manifests if m.stage != "report"), key=lambda m: (m.iteration, list(STAGES).index(m.stage)))
    for manifest in finished:
        reader.read_stage(manifest, explorer)
    return ReportInputs(
        config=config,
        stages=tuple(stage_facts(manifest) for manifest in finished),
        predictions=reader.predictions,
        pass_counts=reader.pass_counts,
        perplexities=reader.perplexities,
        scores=reader.scores,
        trees=reader.trees,
        pairs=reader.pairs,
        training=reader.training,
        examples=reader.examples,
        held_out_digest=reader.held_out_digest,
    )


def stage_facts(manifest: Manifest) -> StageFacts:
    """The manifest's part that the report shows."""
    return StageFacts(
        name=manifest.stage,
        iteration=manifest.iteration,
        seconds=manifest.seconds,
        startup_seconds=manifest.startup_seconds,
        peak_memory_bytes=manifest.peak_memory_bytes,
        tokens=manifest.tokens,
        incoming=manifest.counts.incoming,
        kept=manifest.counts.kept,
        dropped=dict(manifest.counts.dropped),
        metrics=dict(manifest.metrics),
    )


class _Reader:
    """Collects the records of the stages, one stage after the other."""

    def __init__(self, path: Callable[[str, str], Path]) -> None:
        self._local_path = path
        self._manifest: Manifest | None = None
        self.predictions: dict[tuple[int, str], list[Prediction]] = {}
        self.pass_counts: dict[tuple[int, str], list[PassCount]] = {}
        self.perplexities: dict[int, list[ExamplePerplexity]] = {}
        self.scores: dict[int, list[Score]] = {}
        self.trees: dict[int, list[SearchTree]] = {}
        self.pairs: dict[int, list[PreferencePair]] = {}
        self.training: dict[tuple[int, str], list[dict[str, Any]]] = {}
        self.examples: dict[str, Example] = {}
        self.held_out_digest: str | None = None

    def read_stage(self, manifest: Manifest, explorer: bool) -> None:
        """Read what the report needs of one stage."""
        self._manifest = manifest
        name, iteration = manifest.stage, manifest.iteration
        role = str(manifest.id)
        match name:
            case "prepare":
                if held_out := manifest.files.get("held_out.jsonl"):
                    self.held_out_digest = held_out.sha256
                if explorer:
                    self.examples = {e.id: e for e in self._records(Example, role, "buffer.jsonl")}
            case "warmup" | "dpo":
                self.training[iteration, name] = self._rows(role, "training.jsonl")
            case "score":
                self.scores[iteration] = self._records(Score, role, "scores.jsonl")
            case "generate":
                self.trees[iteration] = self._records(SearchTree, role, "trees.jsonl")
                self.pairs[iteration] = self._records(PreferencePair, role, "pairs.jsonl")
            case "evaluate":
                for dataset in DATASETS:
                    self.predictions[iteration, dataset] = self._records(Prediction, role, f"{dataset}.jsonl")
                self.perplexities[iteration] = self._records(ExamplePerplexity, role, "perplexities.jsonl")
                self.pass_counts[iteration, DATASETS[0]] = self._records(PassCount, role, "pass_counts.jsonl")

    def _path(self, role: str, name: str) -> Path | None:
        listed = self._manifest is not None and name in self._manifest.files
        return self._local_path(role, name) if listed else None

    def _lines(self, role: str, name: str) -> list[tuple[int, str]]:
        path = self._path(role, name)
        return [] if path is None else list(numbered_lines(path))

    def _records(self, kind: type[AnyRecord], role: str, name: str) -> list[AnyRecord]:
        records = []
        for number, line in self._lines(role, name):
            try:
                records.append(kind.model_validate_json(line))
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]["msg"]
                raise _unreadable(role, name, number, f"not a {kind.__name__}: {problem}") from None
        return records

    def _rows(self, role: str, name: str) -> list[dict[str, Any]]:
        rows = []
        for number, line in self._lines(role, name):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise _unreadable(role, name, number, f"not JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise _unreadable(role, name, number, f"a {type(row).__name__}, not an object")
            rows.append(row)
        return rows


def _unreadable(role: str, name: str, number: int, problem: str) -> ArtifactError:
    return ArtifactError(f"{role}/{name} line {number} is {problem}", remedy="Delete the artifact of that stage and run again")
