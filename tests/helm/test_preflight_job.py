"""The check before anything is created."""

from __future__ import annotations

from tests.helm.rendering import render

ALL = "before-hook-creation,hook-succeeded,hook-failed"


def test_it_runs_before_everything_else_says_why_it_fails_and_leaves_nothing() -> None:
    job = render()["preflight/job.yaml"]
    assert job["metadata"]["annotations"] == {
        "helm.sh/hook": "pre-install,pre-upgrade",
        "helm.sh/hook-weight": "0",
        "helm.sh/hook-delete-policy": ALL,
        "helm.sh/hook-output-log-policy": "hook-failed",
    }
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] < 300  # Helm's own limit


def test_it_asks_doctor_with_the_configuration_of_the_run() -> None:
    pod = render()["preflight/job.yaml"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["itoolctl", "doctor", "--config", "/etc/itool/config.yaml", "--preflight"]
    assert pod["volumes"][0]["configMap"]["name"] == "demo-preflight"


def test_a_missing_secret_is_told_by_the_program_instead_of_a_pod_that_never_starts() -> None:
    pod = render({"run": {"kubernetes": {"credentials_secret": "s3"}}})["preflight/job.yaml"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3", "optional": True}}]


def test_it_runs_as_the_stages_do_where_their_account_exists() -> None:
    accounts = {"serviceAccounts": {"jobs": {"create": False, "name": "mine"}}}
    assert render(accounts)["preflight/job.yaml"]["spec"]["template"]["spec"]["serviceAccountName"] == "mine"
    assert render()["preflight/job.yaml"]["spec"]["template"]["spec"]["serviceAccountName"] == "demo-preflight"


def test_it_can_be_left_out() -> None:
    assert not [template for template in render({"preflight": {"enabled": False}}) if template.startswith("preflight/")]
