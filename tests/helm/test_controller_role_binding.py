"""Who has the controller's rights."""

from __future__ import annotations

from tests.helm.rendering import render


def test_only_the_controllers_account_has_them() -> None:
    binding = render({"serviceAccounts": {"controller": {"create": False, "name": "mine"}}})["controller/role-binding.yaml"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "mine", "namespace": "training"}]
    assert binding["roleRef"]["name"] == render()["controller/role.yaml"]["metadata"]["name"]


def test_somebody_else_may_bind_the_rights() -> None:
    assert "controller/role-binding.yaml" not in render({"rbac": {"create": False}})
