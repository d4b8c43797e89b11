"""The shape of report.json: what `itoolctl report --output json` prints and docs/report.schema.json documents.

Numbers that come from counting are recomputed from the stored records, so that the report cannot disagree with them. Fractions are 0..1,
times seconds, memory bytes. `python -m itool.evaluate.report_schema FILE` writes the JSON Schema; a test fails when the file is stale.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from itool.evaluate.intervals import Interval

REPORT_VERSION: Literal[2] = 2
"""Version of the document below. It rises when a field changes its meaning or goes; a new field does not raise it."""


class Part(BaseModel):
    """Base of everything in the report: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageReport(Part):
    """What one stage cost and what it could not use."""

    name: str
    iteration: int
    seconds: float = Field(description="from the start of the process to the last byte of the artifact")
    startup_seconds: float = Field(description="the part of `seconds` before useful work began: imports, loading the model")
    tokens: int = Field(description="tokens that the stage computed: forwarded, sampled or trained on")
    incoming: int = Field(description="records that came in")
    kept: int = Field(description="records that were used")
    dropped: dict[str, int] = Field(description="records that were not used, by reason")
    peak_memory_bytes: int | None = None


class Group(Part):
    """Accuracy of one group of examples. `ci95` is a Wilson interval."""

    count: int
    correct: int
    exact_match: float
    ci95: Interval


class EvaluationReport(Part):
    """How one adapter answers one dataset."""

    iteration: int = Field(description="0 = after the warm-up")
    dataset: Literal["held_out", "validation"] = Field(description="`validation` chooses the iteration, `held_out` is what is reported")
    count: int
    correct: int
    exact_match: float
    ci95: Interval = Field(description="Wilson interval, 95 %")
    by_difficulty: dict[str, float] = Field(description="exact match by difficulty")
    no_call: float | None = Field(description="exact match where no tool fits; null without such examples")
    groups: dict[str, Group] = Field(description="count and interval behind by_difficulty, `no_call` and `call`")
    errors: dict[str, int] = Field(description="wrong answers by kind")
    truncated: int = Field(description="answers that reached the longest response")
    verdicts: str = Field(
        "", description="one digit per example in the order of the dataset, 1 right, 0 wrong; lets runs be compared pairwise"
    )
    pass_at_k: dict[str, float] = Field(default_factory=dict, description="share of `pass_examples` that one of k samples solves")
    pass_at_k_ci95: dict[str, Interval] = Field(
        default_factory=dict, description="Wilson interval, 95 %, of each `pass_at_k` over its examples, by the spread between them"
    )
    pass_examples: int = Field(0, description="examples behind `pass_at_k`, chosen by hash of their ids; the same in every iteration")


class Histogram(Part):
    """Counts between consecutive edges; the last bin also holds what lies above."""

    edges: list[float]
    counts: list[int]


class AdapterPerplexity(Part):
    """Ground-truth perplexity, Eq. (4), of one adapter on validation examples, the same in every iteration."""

    iteration: int = Field(description="0 = after the warm-up")
    count: int
    geometric_mean: float
    median: float
    p90: float
    histogram: Histogram


class PerplexityReport(Part):
    """Ground-truth perplexity of the buffer, Eq. (4), scored by the adapter of the iteration before."""

    count: int
    mean: float
    median: float
    p90: float
    histogram: Histogram
    selected: Histogram


class PairReport(Part):
    """The preference pairs of an iteration."""

    count: int
    injected: int
    mean_gap: float | None = Field(description="Q chosen minus Q rejected; null without pairs, as the visits below")
    mean_chosen_visits: float | None
    mean_rejected_visits: float | None
    gap: Histogram
    dropped: dict[str, int] = Field(description="states of the trees that gave no pair, by reason")


class IterationReport(Part):
    """What one iteration did. Counts are 0 where the method has no such stage."""

    iteration: int
    scored: int
    selected: int
    trees: int
    pairs: int
    injected_fraction: float | None = Field(description="share of pairs that needed the ground-truth step; null without pairs")
    pass_at_k: dict[str, float] = Field(description="of this iteration's adapter on `pass_examples` held-out examples")
    pass_at_k_ci95: dict[str, Interval] = Field(default_factory=dict, description="as in `evaluations`")
    pass_examples: int = 0
    pass_rate: float | None = Field(description="share of correct samples in this iteration's trees")
    sampled_tokens: int = Field(description="tokens that the policy drew for the search, and for pass rates where these select")
    simulations: int
    updates: int
    stopped: dict[str, int] = Field(description="trees by the reason why their search ended")
    perplexity: PerplexityReport | None = None
    pair_statistics: PairReport | None = None


class TrainingCurve(Part):
    """Per-update figures of a training stage, thinned for reading; `updates` gives the x axis of every series."""

    iteration: int
    stage: str
    updates: list[int]
    series: dict[str, list[float | None]]


class Gain(Part):
    """Best iteration minus warm-up on the same held-out examples."""

    iteration: int
    count: int
    difference: float
    ci95: Interval
    wins: int
    losses: int
    p_value: float = Field(description="exact McNemar, two-sided")


class Report(Part):
    """Everything measured in one run."""

    schema_version: Literal[2] = REPORT_VERSION
    run: str
    method: str
    seed: int
    config_digest: str
    config: dict[str, Any]
    held_out_digest: str | None = Field(None, description="SHA-256 of the held-out examples; equal digests can be compared pairwise")
    stages: list[StageReport]
    evaluations: list[EvaluationReport]
    iterations: list[IterationReport]
    best_iteration: int | None = Field(
        description="the latest within a standard error of the best on `validation`; null before there is any"
    )
    best_by: Literal["validation", "last"] = Field(description="`last`: there was no validation set, so the last iteration stands")
    gain: Gain | None = None
    perplexities: list[AdapterPerplexity] = Field(
        default_factory=list, description="one per adapter; empty where no validation example has a ground-truth response"
    )
    training: list[TrainingCurve] = Field(default_factory=list)

    def evaluation(self, iteration: int, dataset: str = "held_out") -> EvaluationReport | None:
        """One evaluation, or None where it was not made."""
        return next((e for e in self.evaluations if (e.iteration, e.dataset) == (iteration, dataset)), None)


def schema_document() -> str:
    """The JSON Schema of report.json as text, with a stable order."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Report.model_json_schema(mode="serialization")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_document(), encoding="utf-8")
