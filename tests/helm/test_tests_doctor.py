"""`helm test`: doctor, with the controller's rights."""

from __future__ import annotations

from tests.helm.rendering import render


def test_doctor_runs_as_the_controller_with_its_configuration() -> None:
    pod = render()["tests/doctor.yaml"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["serviceAccountName"] == "demo-controller"
    assert pod["spec"]["containers"][0]["command"] == ["itoolctl", "doctor", "--config", "/etc/itool/config.yaml"]
    assert pod["spec"]["volumes"][0]["configMap"]["name"] == "demo-config"


def test_its_findings_are_shown_and_it_is_gone_afterwards() -> None:
    annotations = render()["tests/doctor.yaml"]["metadata"]["annotations"]
    assert annotations["helm.sh/hook-output-log-policy"] == "hook-succeeded,hook-failed"
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded,hook-failed"
