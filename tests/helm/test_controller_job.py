"""The Job that runs the controller."""

from __future__ import annotations

from typing import Any

from itool.errors import ConfigError, InputError, Interrupted, ItoolError, NumericalError, StorageError
from tests.helm.rendering import REPOSITORY, render


def job(changes: dict[str, Any] | None = None, *arguments: str) -> dict[str, Any]:
    return render(changes, *arguments)["controller/job.yaml"]


def test_it_iterates_with_the_mounted_configuration() -> None:
    pod = job()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["itoolctl", "iterate", "--config", "/etc/itool/config.yaml", "--wait-lease", "inf"]
    assert {"name": "config", "configMap": {"name": "demo-config"}} in pod["volumes"]
    assert {"name": "config", "mountPath": "/etc/itool", "readOnly": True} in container["volumeMounts"]
    assert pod["serviceAccountName"] == "demo-controller"


def test_it_knows_the_object_that_owns_what_it_creates_and_a_folder_that_it_may_write() -> None:
    environment = {variable["name"]: variable for variable in job()["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["ITOOL_RELEASE_CONFIGMAP"]["value"] == "demo-config"
    assert environment["TMPDIR"]["value"] == "/scratch"


def test_a_revision_has_a_job_of_its_own_because_templates_are_immutable() -> None:
    assert job()["metadata"]["name"] == "demo-controller-1"


def test_argo_cd_which_knows_no_revisions_replaces_it() -> None:
    assert job()["metadata"]["annotations"] == {"argocd.argoproj.io/sync-options": "Force=true,Replace=true"}


def test_another_configuration_shows_in_the_pod_template() -> None:
    digests = {job({"run": {"iterations": n}})["spec"]["template"]["metadata"]["annotations"]["itool/config-sha256"] for n in (3, 4, 4)}
    assert len(digests) == 2


def test_no_outage_is_so_long_that_the_job_gives_up() -> None:
    longest_pause_seconds, ten_years = 600, 10 * 365 * 86400
    assert job()["spec"]["backoffLimit"] * longest_pause_seconds > ten_years


def test_a_pod_is_replaced_unless_a_repetition_would_end_the_same_way() -> None:
    spec = job()["spec"]
    disruption, interrupted, final = spec["podFailurePolicy"]["rules"]
    assert (disruption["action"], disruption["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget", "status": "True"}])
    assert (interrupted["action"], interrupted["onExitCodes"]["values"]) == ("Ignore", [Interrupted.exit_code])
    hopeless = {error.exit_code for error in (ItoolError, ConfigError, InputError, StorageError, NumericalError)}
    assert (final["action"], set(final["onExitCodes"]["values"])) == ("FailJob", hopeless | {2})  # 2: a command line that is wrong
    *others, last = (str(code) for code in sorted(hopeless | {2}))
    assert f"{', '.join(others)} and {last} end its Job" in (REPOSITORY / "docs" / "operations.md").read_text()
    assert (spec["podReplacementPolicy"], spec["template"]["spec"]["restartPolicy"]) == ("Failed", "Never")
