"""The controller's rights: what the client uses, and nothing else."""

from __future__ import annotations

from typing import Any

from itool.cluster.client import PERMISSIONS, QUEUE_PERMISSIONS
from tests.helm.rendering import render


def granted_by(changes: dict[str, Any], *arguments: str) -> dict[str, tuple[str, ...]]:
    """Verbs by resource, as the client names it."""
    granted: dict[str, tuple[str, ...]] = {}
    for rule in render(changes, *arguments)["controller/role.yaml"]["rules"]:
        (group,), (resource,) = rule["apiGroups"], rule["resources"]
        name = f"{group}/{resource}" if group else resource
        assert name not in granted
        granted[name] = tuple(rule["verbs"])
    return granted


def test_the_role_grants_exactly_what_the_client_uses() -> None:
    used = {resource: tuple(sorted(verbs)) for resource, verbs in PERMISSIONS.items()}
    assert granted_by({}) == used
    queue = {"run": {"kubernetes": {"queue": "gpus"}}}
    assert granted_by(queue, "--api-versions", "kueue.x-k8s.io/v1beta1") == used | QUEUE_PERMISSIONS


def test_somebody_else_may_bind_the_rights() -> None:
    assert "controller/role.yaml" not in render({"rbac": {"create": False}})
