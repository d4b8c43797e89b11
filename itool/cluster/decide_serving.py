"""What vLLM shall do beside a stage, as pure functions: serve the stage's adapter, leave the GPU to it, or stop.

Only where the controller runs vLLM itself (`serving.py`). A stage that asks the policy starts when every replica has proved the stage's
adapter; with `gpu_sharing: timeshare` a stage that computes on a GPU starts when no vLLM pod is left; when no later stage asks the policy,
and when the run fails, vLLM is scaled to 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from itool.artifacts.resolve import Resolution
from itool.cluster.pods import gpus_of
from itool.cluster.wish import StoredArtifact, Wish
from itool.config import RunConfig
from itool.errors import DependencyError, StorageError
from itool.stages import StageId, asks_policy, computes_on_gpu, inputs_of


@dataclass(frozen=True)
class ServingPod:
    """One vLLM pod. `serving`: it has proved the adapter that is wished for; `refused`: it never will, with `exit_code`.

    `since` is when it came into this phase (seconds since the epoch); `reason` says what it waits for, in one line.
    """

    name: str
    phase: Literal["pending", "starting", "serving", "refused", "stopping"]
    since: float = 0.0
    reason: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class ServingState:
    """The vLLM servers that the controller runs. `replicas` is how many are asked for; 0 without a Deployment.

    `current` says that the Deployment is as the configuration wants it, `since` when replicas began to be missing (None: unknown),
    `reason` why pods cannot be created, and `overfilled` how pods were evicted, when it was again and again for what they stored.
    """

    wish: Wish | None = None
    replicas: int = 0
    pods: tuple[ServingPod, ...] = ()
    current: bool = True
    since: float | None = None
    reason: str = ""
    overfilled: str = ""


@dataclass(frozen=True)
class Serve:
    """Let every replica serve this adapter, as the configuration wants it; applying it again changes nothing."""

    model: StoredArtifact
    adapter: StoredArtifact
    reason: str


@dataclass(frozen=True)
class StopServing:
    """Scale vLLM to 0."""

    reason: str


@dataclass(frozen=True)
class Beside:
    """What vLLM does beside a stage, and what keeps the stage from starting: `waits_for` is to be waited for, `failure` ends the run."""

    actions: tuple[Serve | StopServing, ...] = ()
    waits_for: str = ""
    failure: tuple[int, str] | None = None


def beside_stage(config: RunConfig, resolutions: Mapping[StageId, Resolution], serving: ServingState, stage: StageId, now: float) -> Beside:
    """What vLLM has to do for the first stage that is not done."""
    if not any(asks_policy(config, other.name) for other, resolution in resolutions.items() if not resolution.done):
        return Beside(stop(serving, "no later stage asks the policy"))
    if asks_policy(config, stage.name):
        return _serve(config, resolutions, serving, stage, now) if resolutions[stage].key is not None else Beside()
    if _competes(config, stage):
        waits_for = f"the GPU: {_count(len(serving.pods), 'vLLM pod')} still there" if serving.pods else ""
        return Beside(stop(serving, f"{stage} needs the GPU"), waits_for)
    return Beside()


def stop(serving: ServingState, reason: str) -> tuple[StopServing, ...]:
    """The action that stops vLLM, unless that is done."""
    return (StopServing(reason),) if serving.replicas else ()


def _serve(config: RunConfig, resolutions: Mapping[StageId, Resolution], serving: ServingState, stage: StageId, now: float) -> Beside:
    """Serve the stage's adapter, and wait while a replica has not proved it."""
    inputs = inputs_of(config, stage)
    model, adapter = _stored(resolutions[inputs["data"]]), _stored(resolutions[inputs["adapter"]])
    wanted = config.kubernetes.serving.replicas
    asked = serving.wish is not None and serving.wish.asks(model, adapter) and serving.replicas == wanted and serving.current
    actions = () if asked else (Serve(model, adapter, f"{stage} asks the adapter of {inputs['adapter']}"),)
    proved = sum(pod.phase == "serving" for pod in serving.pods) if asked else 0
    if proved >= wanted:
        return Beside(actions)
    trouble = _trouble(serving) if asked else ""
    waits_for = f"vLLM: {proved} of {_count(wanted, 'replica')} ready{'; ' + trouble if trouble else ''}"
    return Beside(actions, waits_for, _failure(config, serving, now) if asked else None)


def _trouble(serving: ServingState) -> str:
    """Why not all of vLLM serves; empty when nothing is known."""
    reasons = [f"{pod.name} is {pod.phase}{': ' + pod.reason if pod.reason else ''}" for pod in serving.pods if pod.phase != "serving"]
    return reasons[0] if reasons else serving.reason


def _failure(config: RunConfig, serving: ServingState, now: float) -> tuple[int, str] | None:
    """Exit code and message when it makes no sense to wait longer: a refusal, pods that fill their disk again and again, or one that takes
    longer than the settings allow.
    """
    if serving.overfilled:
        return StorageError.exit_code, f"vLLM pods store more than they may: {serving.overfilled}; raise kubernetes.serving.scratch"
    pending, starting = config.kubernetes.pending_seconds, config.kubernetes.serving.startup_seconds
    limits = {"pending": (pending, "kubernetes.pending_seconds"), "starting": (starting, "kubernetes.serving.startup_seconds")}
    for pod in serving.pods:
        if pod.phase == "refused":
            return pod.exit_code, f"vLLM pod {pod.name} refuses the adapter: {pod.reason}"
        longest, key = limits.get(pod.phase, (math.inf, ""))
        if now - pod.since >= longest:
            return DependencyError.exit_code, f"vLLM pod {pod.name} is {pod.phase} for more than {longest:.0f} s ({key}): {pod.reason}"
    wanted, there = config.kubernetes.serving.replicas, len(serving.pods)
    lacking = not there or (there < wanted and serving.reason)
    if lacking and serving.since is not None and now - serving.since >= pending:
        found = f"{_count(there, 'vLLM pod')} of {wanted}" if there else "no vLLM pod"
        are = "are" if there > 1 else "is"
        return DependencyError.exit_code, f"there {are} {found} after {pending:.0f} s (kubernetes.pending_seconds): {serving.reason}"
    return None


def _competes(config: RunConfig, stage: StageId) -> bool:
    """Whether the stage needs a GPU that vLLM holds although nobody asks it."""
    serving = config.kubernetes.serving
    return (
        serving.gpu_sharing == "timeshare" and serving.pod_gpus > 0 and computes_on_gpu(config, stage.name) and gpus_of(config, stage) > 0
    )


def _stored(resolution: Resolution) -> StoredArtifact:
    assert resolution.prefix is not None
    assert resolution.digest is not None
    return StoredArtifact(prefix=resolution.prefix, digest=resolution.digest)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
