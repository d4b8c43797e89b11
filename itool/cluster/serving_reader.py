"""Says how a run's vLLM fares in the cluster: its Deployment, its pods, the wish and the proofs in the store. Changes nothing.

What shall be served lies in the store (`wish.py`), what shall run in the cluster; nothing is kept here that cannot be read again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from itool.artifacts.commit import read_file, read_manifest
from itool.artifacts.store import Store
from itool.cluster.decide_serving import ServingPod, ServingState
from itool.cluster.last_words import last_words
from itool.cluster.objects import COMPONENT_LABEL, Object
from itool.cluster.pod_states import overfilled, pod_state, seconds
from itool.cluster.pods import serving_name
from itool.cluster.serving_manifests import FETCHER, pod_template, template_of
from itool.cluster.wish import Proof, StoredArtifact, Wish, read_proof, read_wish
from itool.commands import resume
from itool.config import RunConfig
from itool.errors import NEVER_AGAIN, ArtifactError
from itool.policy.model_folder import usable_context

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

LOOK_AGAIN_SECONDS = 15.0
"""So often the Deployment is read although nobody but this controller should change it."""

PROOF_SECONDS = 1.0


@dataclass
class ServingReader:
    """One run's vLLM, looked at. `pods` gives the run's pods as the last look at them found them."""

    config: RunConfig
    store: Store
    cluster: Cluster
    pods: Callable[[], Sequence[Object]]
    clock: Callable[[], float] = time.time
    _wish: Wish | None = None
    _deployment: Object | None = None
    _looked_at: float = float("-inf")
    _context: tuple[StoredArtifact, int] | None = None
    _proofs: dict[str, tuple[float, Proof | None]] = field(default_factory=dict)

    def state(self) -> ServingState:
        """How it fares. Raises DependencyError while the cluster or the store cannot be asked."""
        if self.clock() - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._deployment = self.cluster.get("deployments", self._name)
            self._wish = read_wish(self.store, self.config.run)
            self._looked_at = self.clock()
        if self._deployment is None:
            return ServingState(self._wish, 0, self._states(""))
        template = template_of(self._deployment)
        replicas = int(self._deployment["spec"].get("replicas", 1))
        since, reason = shortage(self._deployment)
        current = template == self._wanted_template()
        return ServingState(self._wish, replicas, self._states(template), current, since, reason, self._overfilled(template, replicas))

    @property
    def _name(self) -> str:
        return serving_name(self.config.run)

    def _wanted_template(self) -> str:
        """The hash that the configuration and the wished base model ask for; "" when that model is no longer there."""
        if self._wish is None:
            return ""
        try:
            context = self._context_of(self._wish.model)
        except ArtifactError:
            return ""
        return template_of(pod_template(self.config, self._wish.model, context, self.cluster.namespace))

    def _context_of(self, model: StoredArtifact) -> int:
        """How many tokens vLLM may read at once; remembered, as it costs a look into the model."""
        if self._context is None or self._context[0] != model:
            self._context = (model, usable_context(_model_config(self.store, model), self.config.model.context_tokens))
        return self._context[1]

    def _serving_pods(self) -> list[Object]:
        """Pods that hold something: what has failed (evicted, say) is only a record."""
        return [pod for pod in self._all_pods() if pod_state(pod).phase in ("pending", "running")]

    def _all_pods(self) -> list[Object]:
        return [pod for pod in self.pods() if pod["metadata"]["labels"].get(COMPONENT_LABEL) == "serving"]

    def _overfilled(self, template: str, replicas: int) -> str:
        """How pods of this template were evicted for what they stored, when one that took the place of such a pod was too; else empty."""
        states = [pod_state(pod) for pod in self._all_pods() if template_of(pod) == template]
        evictions = [state.reason for state in states if overfilled(state)]
        return evictions[0] if len(evictions) > replicas else ""

    def _states(self, template: str) -> tuple[ServingPod, ...]:
        return tuple(serving_pod(pod, template, self._wish, self._proof(pod["metadata"]["name"])) for pod in self._serving_pods())

    def _proof(self, pod: str) -> Proof | None:
        """What a pod has proved; asked again, not too often, until it is what is wished for."""
        asked_at, proof = self._proofs.get(pod, (float("-inf"), None))
        settled = proof is not None and self._wish is not None and proof.generation == self._wish.generation and proof.adapter
        if not settled and self.clock() - asked_at >= PROOF_SECONDS:
            proof = read_proof(self.store, self.config.run, pod)
            self._proofs[pod] = (self.clock(), proof)
        return proof


def serving_pod(pod: Object, template: str, wish: Wish | None, proof: Proof | None) -> ServingPod:
    """What one vLLM pod does. Pure; `template` is the hash of the template that pods should have."""
    name, state = pod["metadata"]["name"], pod_state(pod)
    if pod["metadata"].get("deletionTimestamp") or template_of(pod) != template:
        return ServingPod(name, "stopping")
    exit_code, words = _fetch_failure(pod)
    if exit_code in NEVER_AGAIN:
        return ServingPod(name, "refused", reason=words, exit_code=exit_code)
    current = proof if proof and wish and proof.generation == wish.generation else None
    if current and current.problem:
        return ServingPod(name, "refused", reason=current.problem, exit_code=current.exit_code)
    if current and state.ready:
        return ServingPod(name, "serving")
    started_at, unready_since = _fetch_started(pod), _since(pod, "Ready", "False") or 0.0
    if started_at is None or _is_blocked(pod):
        return ServingPod(name, "pending", max(state.created_at, unready_since), state.reason)
    since = max(started_at, unready_since, wish.at if wish else 0.0)
    return ServingPod(name, "starting", since, state.reason or "has not proved the adapter yet")


def shortage(deployment: Object) -> tuple[float | None, str]:
    """Since when a Deployment lacks pods, and why none can be created; (None, "") when it lacks none, or is yet to say."""
    conditions = {found["type"]: found for found in (deployment.get("status") or {}).get("conditions") or []}
    failure, available = conditions.get("ReplicaFailure", {}), conditions.get("Available", {})
    if failure.get("status") == "True":
        return seconds(failure.get("lastTransitionTime")), f"no pod can be created: {failure.get('message', '')}"
    return (seconds(available.get("lastTransitionTime")), "") if available.get("status") == "False" else (None, "")


def _model_config(store: Store, model: StoredArtifact) -> dict[str, Any]:
    """The base model's config.json, from the artifact that pods will fetch it from."""
    manifest = read_manifest(store, model.prefix)
    if manifest is None:
        remedy = f"Run {resume(model.prefix.partition('/')[0], store.root)} again"
        raise ArtifactError(f"{store.root}/{model.prefix} does not exist", remedy=remedy)
    document: dict[str, Any] = json.loads(read_file(store, model.prefix, manifest, "model/config.json"))
    return document


def _fetcher(pod: Object) -> Object:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    return next((found for found in statuses if found["name"] == FETCHER), {})


def _fetch_started(pod: Object) -> float | None:
    """When the pod's first container started; None while it has not. One that has crashed, whose first start nobody knows any more, counts
    from when the pod had its node: else its time would begin anew with each crash.
    """
    found = _fetcher(pod)
    if (found.get("lastState") or {}).get("terminated"):
        return _since(pod, "PodScheduled", "True")
    state = found.get("state") or {}
    return seconds((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def _fetch_failure(pod: Object) -> tuple[int, str]:
    """Exit code and words of a base model that could not be fetched."""
    ended = [(_fetcher(pod).get(kind) or {}).get("terminated") or {} for kind in ("state", "lastState")]
    found = next((state for state in ended if state.get("exitCode")), {})
    return int(found.get("exitCode", 0)), last_words(str(found.get("message", "")))


def _is_blocked(pod: Object) -> bool:
    """Whether Kubernetes cannot start a container at all: no image, no Secret."""
    statuses = [found for kind in ("initContainerStatuses", "containerStatuses") for found in pod["status"].get(kind) or []]
    reasons = {((found.get("state") or {}).get("waiting") or {}).get("reason") for found in statuses}
    return bool(reasons - {None, "PodInitializing", "ContainerCreating", "CrashLoopBackOff"})


def _since(pod: Object, condition: str, status: str) -> float | None:
    """Since when a condition of a pod has this status; None when it has not."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    times = [seconds(found.get("lastTransitionTime")) for found in conditions if (found["type"], found["status"]) == (condition, status)]
    return next(iter(times), None)
