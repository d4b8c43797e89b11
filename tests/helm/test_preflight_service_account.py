"""The account of the check, which runs before the stages' own account exists."""

from __future__ import annotations

from tests.helm.rendering import render

TEMPLATE = "preflight/service-account.yaml"


def test_it_carries_the_workload_identity_of_the_stages() -> None:
    account = render({"serviceAccounts": {"jobs": {"annotations": {"iam.gke.io/gcp-service-account": "itool@example"}}}})[TEMPLATE]
    assert account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"] == "itool@example"
    assert account["metadata"]["annotations"]["helm.sh/hook-weight"] == "-1"
    assert account["automountServiceAccountToken"] is False


def test_it_is_not_needed_where_the_stages_account_exists() -> None:
    assert TEMPLATE not in render({"serviceAccounts": {"jobs": {"create": False, "name": "mine"}}})
