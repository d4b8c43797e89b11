"""The one table of stages: what each reads and writes, which settings it depends on, whether it needs a GPU, where it stands in the loop.

Everything that must know the pipeline's shape (controller, runners, plan, report, chart) reads it here. A stage of an iteration is
addressed by a `StageId`; `inputs_of` gives the stages whose artifacts it reads. Data and pure rules, no storage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from itool.config import RunConfig
from itool.names import SFT_CONTROLS, Method, StageName


class StageId(NamedTuple):
    """A stage in an iteration; iteration 0 is everything before the loop."""

    iteration: int
    name: StageName

    def __str__(self) -> str:
        return f"i{self.iteration}/{self.name}"


@dataclass(frozen=True)
class StageSpec:
    """What is fixed about a stage. `settings` are dotted paths into RunConfig whose values enter the artifact's key, unless `unread`."""

    name: StageName
    purpose: str
    settings: tuple[str, ...]
    writes: tuple[str, ...]
    gpu: bool
    sharded: bool = False
    version: int = 1
    """Raise it when a change of code changes the stage's result: older artifacts are then no longer hits."""


STAGES: dict[StageName, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(
            "prepare",
            "dataset -> warm-up sets by difficulty, replay buffer, validation and held-out sets, base model",
            (
                "seed",
                "data",
                "model.path",
                "model.revision",
                "model.chat_template",
                "model.context_tokens",
                "model.max_response_tokens",
                "model.dtype",
            ),
            ("warmup.jsonl", "buffer.jsonl", "validation.jsonl", "held_out.jsonl", "model/"),
            gpu=False,
            version=7,
        ),
        StageSpec("warmup", "SFT from easy to hard -> adapter 0", ("seed", "model", "warmup"), ("adapter/", "training.jsonl"), gpu=True),
        StageSpec(
            "score",
            "perplexity or pass rate of buffer examples -> the hard ones",
            (
                "seed",
                "model.dtype",
                "model.context_tokens",
                "model.max_response_tokens",
                "select",
                "search.temperature",
                "policy.backend",
                "data.buffer_labels",
            ),
            ("scores.jsonl",),
            gpu=True,
            version=7,
        ),
        StageSpec(
            "generate",
            "search on the hard examples -> trees and preference pairs",
            (
                "seed",
                "method",
                "model.dtype",
                "model.context_tokens",
                "model.max_response_tokens",
                "search",
                "policy.backend",
                "data.buffer_labels",
                "data.max_dropped_fraction",
            ),
            ("pairs.jsonl", "trees.jsonl", "samples.jsonl"),
            gpu=True,
            sharded=True,
            version=6,
        ),
        StageSpec(
            "dpo",
            "pairs and the previous adapter -> the next adapter",
            ("seed", "method", "model", "dpo"),
            ("adapter/", "training.jsonl"),
            gpu=True,
            version=3,
        ),
        StageSpec(
            "evaluate",
            "adapter -> predictions, accuracy, perplexity of the ground truth",
            (
                "seed",
                "model.dtype",
                "model.context_tokens",
                "model.max_response_tokens",
                "evaluate.pass_k",
                "evaluate.pass_examples",
                "search.temperature",
                "policy.backend",
            ),
            ("held_out.jsonl", "validation.jsonl", "pass_counts.jsonl", "perplexities.jsonl", "metrics.json"),
            gpu=True,
            version=6,
        ),
        StageSpec(
            "report",
            "every metric -> report.json, report.html",
            ("run", "method", "iterations"),
            ("report.json", "report.html"),
            gpu=False,
            version=6,
        ),
    )
}


def loop_stages(method: Method) -> tuple[StageName, ...]:
    """The stages of one iteration, in order. Continued SFT, the control, searches nothing."""
    return ("dpo", "evaluate") if method == "sft_continued" else ("score", "generate", "dpo", "evaluate")


def stage_ids(config: RunConfig) -> list[StageId]:
    """Every stage of the run in an order in which each comes after its inputs."""
    return list(_stage_ids(config.method, config.iterations))


def stage_names(method: Method) -> tuple[StageName, ...]:
    """The stages that a run of a method has."""
    loop = loop_stages(method)
    return tuple(name for name in STAGES if name in ("prepare", "warmup", "evaluate", "report") or name in loop)


@lru_cache
def _stage_ids(method: Method, iterations: int) -> tuple[StageId, ...]:
    """Kept, as a controller asks in every round and a run may be long."""
    before = (StageId(0, "prepare"), StageId(0, "warmup"), StageId(0, "evaluate"))
    loop = (StageId(iteration, name) for iteration in range(1, iterations + 1) for name in loop_stages(method))
    return (*before, *loop, StageId(iterations, "report"))


def adapter_stage(iteration: int) -> StageId:
    """The stage that writes the adapter of an iteration (0 = warm-up)."""
    return StageId(iteration, "dpo") if iteration else StageId(0, "warmup")


def inputs_of(config: RunConfig, stage: StageId) -> dict[str, StageId]:
    """What a stage reads, by role: `data` (prepare), `adapter` (the current policy), `scores`, `pairs`, `reference`; report reads all."""
    if stage.name == "prepare":
        return {}
    if stage.name == "report":
        return {str(other): other for other in stage_ids(config) if other.name != "report"}
    k = stage.iteration
    inputs = {"data": StageId(0, "prepare")}
    if stage.name in ("score", "generate", "dpo"):
        inputs["adapter"] = adapter_stage(k - 1)
    if stage.name == "evaluate":
        inputs["adapter"] = adapter_stage(k)
    if stage.name == "generate":
        inputs["scores"] = StageId(k, "score")
    if stage.name == "dpo" and config.method != "sft_continued":
        inputs["pairs"] = StageId(k, "generate")
    if stage.name == "dpo" and config.dpo.reference == "warmup" and config.method not in SFT_CONTROLS:
        inputs["reference"] = adapter_stage(0)
    return inputs


def may_overlap(config: RunConfig, stage: StageId) -> bool:
    """Whether a stage may run beside another: the evaluation of a policy, and the scoring and search with it in the next iteration.

    Nothing in the loop reads an evaluation. Training waits for it, so that never more than one is behind. Stages stay alone where each
    starts a vLLM of its own, which takes a GPU's whole memory, and where vLLM and they take turns on a GPU.
    """
    in_turns = config.runtime.backend == "kubernetes" and config.kubernetes.serving.gpu_sharing == "timeshare"
    if not config.runtime.overlap_evaluation or starts_own_vllm(config) or in_turns or config.method == "sft_continued":
        return False
    return stage.name in ("score", "generate") or (stage.name == "evaluate" and stage.iteration < config.iterations)


def starts_own_vllm(config: RunConfig) -> bool:
    """Whether each process that asks the policy starts a vLLM of its own, which takes a GPU's whole memory: one at a time then."""
    return config.policy.starts_vllm and not config.has_managed_serving


def asks_policy(config: RunConfig, name: StageName) -> bool:
    """Whether a stage samples from the policy, embedded or served."""
    return name in ("generate", "evaluate") or (name == "score" and config.select.by == "pass_rate")


def computes_on_gpu(config: RunConfig, name: StageName) -> bool:
    """Whether a stage runs the model itself; one that only asks a vLLM server does not."""
    return STAGES[name].gpu and not (asks_policy(config, name) and config.policy.backend == "vllm")


def shards_of(config: RunConfig, stage: StageId) -> int:
    """Into how many pieces a stage is cut."""
    return config.search.shards if STAGES[stage.name].sharded else 1


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A document's values by dotted path."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


_DEFAULTS = flatten(RunConfig().model_dump(mode="json"))
_DEPTH_ONE = ("granularity", "width", "root_samples", "depth_limit", "simulations", "c_puct", "gamma", "min_visits", "confidence_weight")
_UNREAD_BY_SEARCH: dict[Method, tuple[str, ...]] = {
    "mcts_dpo": ("best_of",),
    "best_of_n": _DEPTH_ONE,
    "rejection_sampling": (*_DEPTH_ONE, "inject_ground_truth", "min_gap"),
}
_OF_PREFERENCES = (
    "loss",
    "beta",
    "simpo_gamma",
    "length_normalised",
    "nll_weight",
    "nll_on",
    "label_smoothing",
    "reference",
    "replay_from",
)


def unread(values: Mapping[str, Any], name: StageName) -> frozenset[str]:
    """Which of a stage's settings do not change its result, given the values of all (by dotted path).

    How much may be dropped and how often is saved decide whether there is a result, not which. A setting that is read and stands here
    would give stale results: what is in doubt counts as read.
    """
    fields: tuple[str, ...] = ()
    match name:
        case "prepare":
            fields = ("data.max_dropped_fraction",)
        case "warmup":
            fields = ("warmup.checkpoint_seconds",)
        case "score" if values["select.by"] == "perplexity":
            fields = ("select.samples", "search.temperature", "policy.backend")
        case "generate":
            fields = ("data.max_dropped_fraction", *(f"search.{field}" for field in _UNREAD_BY_SEARCH.get(values["method"], ())))
        case "dpo":
            of_pairs = _OF_PREFERENCES if values["method"] in SFT_CONTROLS else ()
            fields = tuple(f"dpo.{field}" for field in ("checkpoint_seconds", *of_pairs))
        case "evaluate" if not values["evaluate.pass_examples"]:
            fields = ("evaluate.pass_k", "search.temperature")
    return frozenset(fields)


def settings_read(values: Mapping[str, Any], name: StageName) -> dict[str, Any]:
    """Those of a configuration's values, by dotted path, that a stage depends on."""
    left_out = unread(values, name)
    below = tuple(f"{path}." for path in STAGES[name].settings)
    return {path: values[path] for path in values if path not in left_out and f"{path}.".startswith(below)}


def settings_of(config: RunConfig, name: StageName) -> dict[str, Any]:
    """The values of the settings that a stage depends on, by dotted path; nested sections are flattened."""
    return settings_read(flatten(config.model_dump(mode="json")), name)


def artifact_key(stage: StageId, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """Content address of a stage's result: 16 hex digits over its settings and the content digests of its inputs, by role.

    What is unread enters with its default: which settings are, can change without a new key for artifacts that had the default.
    """
    recipe = {
        "stage": stage.name,
        "iteration": stage.iteration,
        "version": STAGES[stage.name].version,
        "settings": settings | {path: _DEFAULTS[path] for path in unread(settings, stage.name)},
        "inputs": inputs,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
