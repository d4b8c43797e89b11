"""What vLLM's pods shall serve, and what each of them has proved: two small documents in the store.

    <run>/serving/wish.json            written by the controller: base model, adapter, generation
    <run>/serving/pods/<pod>.json      written by a pod's adapter keeper: the generation that it serves, or why it refuses it

They are all that the two sides say to each other, so a pod needs no access to the Kubernetes API and the controller none to the pods.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from itool.artifacts.store import Store
from itool.errors import ArtifactError


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredArtifact(_Document):
    """An artifact as another process finds it: where it lies and the content digest that it must have."""

    prefix: str
    digest: str


class Wish(_Document):
    """What shall be served. `generation` grows with every change; `at` is when it was written."""

    model: StoredArtifact
    adapter: StoredArtifact
    generation: int = 1
    at: float = Field(default_factory=time.time)

    def asks(self, model: StoredArtifact, adapter: StoredArtifact) -> bool:
        """Whether it wishes for just this."""
        return (self.model, self.adapter) == (model, adapter)


class Proof(_Document):
    """What a pod has proved: it serves `adapter` (its name on the server) for a generation, or refuses it with `problem` (one line)."""

    generation: int
    adapter: str = ""
    problem: str = ""
    exit_code: int = 0
    at: float = Field(default_factory=time.time)


def read_wish(store: Store, run: str) -> Wish | None:
    """The wish as it stands; None before the first. Raises DependencyError when the store is down, ArtifactError when it is unreadable."""
    try:
        data = store.read(_wish_key(run))
    except ArtifactError:  # there is none; one request instead of two, as every pod asks every second
        return None
    try:
        return Wish.model_validate_json(data)
    except ValidationError:
        raise ArtifactError(f"{store.root}/{_wish_key(run)} is no wish of this version", remedy="Remove it and run again") from None


def has_wish(store: Store, run: str) -> bool:
    """Whether a controller has ever run a vLLM for this run."""
    return store.size(_wish_key(run)) is not None


def write_wish(store: Store, run: str, model: StoredArtifact, adapter: StoredArtifact) -> Wish:
    """Wish for an adapter. Only the controller that holds the run may; nothing is written when the wish stands already."""
    standing = read_wish(store, run)
    if standing is not None and standing.asks(model, adapter):
        return standing
    wish = Wish(model=model, adapter=adapter, generation=standing.generation + 1 if standing else 1)
    store.write(_wish_key(run), wish.model_dump_json().encode())
    return wish


def read_proof(store: Store, run: str, pod: str) -> Proof | None:
    """What a pod has proved last; None before the first proof, and for one that cannot be read (the pod will write it again)."""
    try:
        return Proof.model_validate_json(store.read(_proof_key(run, pod)))
    except (ValidationError, ArtifactError):
        return None


def write_proof(store: Store, run: str, pod: str, proof: Proof) -> None:
    """Say what this pod serves."""
    store.write(_proof_key(run, pod), proof.model_dump_json().encode())


def forget_proofs(store: Store, run: str, *, keep: frozenset[str]) -> None:
    """Remove the proofs of pods that are gone (all but those to `keep`)."""
    for key in store.list(f"{run}/serving/pods"):
        if key.removesuffix(".json").rpartition("/")[2] not in keep:
            store.delete(key)


def _wish_key(run: str) -> str:
    return f"{run}/serving/wish.json"


def _proof_key(run: str, pod: str) -> str:
    return f"{run}/serving/pods/{pod}.json"
