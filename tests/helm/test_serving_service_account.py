"""The service account of vLLM pods."""

from __future__ import annotations

from tests.helm.rendering import render

TEMPLATE = "serving/service-account.yaml"


def test_no_pod_gets_its_token_unasked() -> None:
    account = render()[TEMPLATE]
    assert (account["metadata"]["name"], account["automountServiceAccountToken"]) == ("demo-serving", False)


def test_a_workload_identity_is_an_annotation() -> None:
    annotations = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/itool"}
    assert render({"serviceAccounts": {"serving": {"annotations": annotations}}})[TEMPLATE]["metadata"]["annotations"] == annotations


def test_an_account_that_exists_is_not_created() -> None:
    assert TEMPLATE not in render({"serviceAccounts": {"serving": {"create": False, "name": "mine"}}})
