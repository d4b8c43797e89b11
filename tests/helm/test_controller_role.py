"""The controller's rights: what the client uses, and nothing else."""

from __future__ import annotations

from itool.cluster.client import PERMISSIONS
from tests.helm.rendering import render


def test_the_role_grants_exactly_what_the_client_uses() -> None:
    granted = {}
    for rule in render()["controller/role.yaml"]["rules"]:
        (group,), (resource,) = rule["apiGroups"], rule["resources"]
        name = f"{group}/{resource}" if group else resource
        assert name not in granted
        granted[name] = tuple(rule["verbs"])
    assert granted == {resource: tuple(sorted(verbs)) for resource, verbs in PERMISSIONS.items()}


def test_somebody_else_may_bind_the_rights() -> None:
    assert "controller/role.yaml" not in render({"rbac": {"create": False}})
