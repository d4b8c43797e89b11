"""The configuration for the check, which runs before the run's own ConfigMap exists."""

from __future__ import annotations

from tests.helm.rendering import render


def test_it_is_the_configuration_of_the_run_and_comes_before_the_check() -> None:
    rendered = render()
    assert rendered["preflight/config-map.yaml"]["data"] == rendered["config-map.yaml"]["data"]
    annotations = rendered["preflight/config-map.yaml"]["metadata"]["annotations"]
    assert int(annotations["helm.sh/hook-weight"]) < int(rendered["preflight/job.yaml"]["metadata"]["annotations"]["helm.sh/hook-weight"])
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded,hook-failed"
