"""Runs vLLM in the cluster for the controller: brings the Deployment to what was decided (`serving_reader.py` says how its pods fare)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from itool.cluster.decide_serving import Serve, ServingState, StopServing
from itool.cluster.objects import Object
from itool.cluster.pods import serving_name
from itool.cluster.serving_manifests import change_to, serving_deployment, serving_service
from itool.cluster.serving_reader import ServingReader
from itool.cluster.wish import forget_proofs, write_wish
from itool.config import RunConfig
from itool.logs import get_logger

if TYPE_CHECKING:
    from itool.cluster.client import Cluster

log = get_logger(__name__)


class Serving(Protocol):
    """What the controller asks of serving."""

    def state(self) -> ServingState:
        """How it fares. Raises DependencyError while the cluster or the store cannot be asked."""

    def serve(self, action: Serve) -> None:
        """Bring it about; nothing changes where it is so already."""

    def stop(self, action: StopServing) -> None:
        """Scale to 0."""


@dataclass
class KubernetesServing(ServingReader):
    """One run's vLLM. `pods` gives the run's pods as a watch knows them, `owner` the run's owner object, `keep_service` makes a Service
    when there is none of its name.
    """

    owner: Callable[[], Object] = field(kw_only=True)
    keep_service: Callable[[str, Callable[[RunConfig, Object], Object]], None] = field(kw_only=True)

    def state(self) -> ServingState:
        """See Serving.state. Makes a lost Service again, though not that of a vLLM which the settings want no more."""
        found = super().state()
        if found.replicas and self.config.has_managed_serving:
            self.keep_service(self._name, serving_service)
        return found

    def serve(self, action: Serve) -> None:
        """See Serving.serve. The wish first, so that a pod that starts finds it."""
        self._wish = write_wish(self.store, self.config.run, action.model, action.adapter)
        owner, context = self.owner(), self._context_of(action.model)
        wanted = serving_deployment(self.config, action.model, context, namespace=self.cluster.namespace, owner=owner)
        self.keep_service(self._name, serving_service)
        standing = self.cluster.get("deployments", self._name)
        self._deployment = (
            self.cluster.patch("deployments", self._name, change_to(wanted, standing))
            if standing
            else self.cluster.create("deployments", wanted)
        )
        self._looked_at = self.clock()
        self._forget_proofs(frozenset(pod["metadata"]["name"] for pod in self._serving_pods()))
        log.info("vllm asked to serve", adapter=action.adapter.prefix, generation=self._wish.generation, reason=action.reason)

    def stop(self, action: StopServing) -> None:
        """See Serving.stop. The Deployment stays, with its Service: nothing that runs belongs to them then."""
        self._deployment = self.cluster.patch("deployments", self._name, {"spec": {"replicas": 0}})
        self._forget_proofs(frozenset())
        log.info("vllm asked to stop", reason=action.reason)

    def _forget_proofs(self, keep: frozenset[str]) -> None:
        forget_proofs(self.store, self.config.run, keep=keep)
        self._proofs = {pod: found for pod, found in self._proofs.items() if pod in keep}


def has_vllm(cluster: Cluster, run: str) -> bool:
    """Whether a vLLM of the run is asked to run, whatever the run's settings say by now."""
    found = cluster.get("deployments", serving_name(run))
    return found is not None and found["spec"].get("replicas", 1) > 0


def stop_vllm(cluster: Cluster, run: str) -> bool:
    """Scale a run's vLLM to 0; False where none is asked to run."""
    return has_vllm(cluster, run) and cluster.patch("deployments", serving_name(run), {"spec": {"replicas": 0}}) is not None
