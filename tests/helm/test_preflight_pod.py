"""The pod by which the API server says whether it would let the controller's in."""

from __future__ import annotations

from tests.helm.rendering import pod_specs, render
from tests.helm.test_preflight_job import ALL

SETTINGS = {
    "priorityClass": "low",
    "nodeSelector": {"zone": "b"},
    "volumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
}


def test_it_asks_for_what_the_controllers_pod_asks_for() -> None:
    pods = pod_specs(render({"controller": SETTINGS}))
    asked, real = pods["preflight/pod.yaml"], pods["controller/job.yaml"]
    own = {"activeDeadlineSeconds", "automountServiceAccountToken", "serviceAccountName", "containers", "volumes"}
    assert {key: value for key, value in asked.items() if key not in own} == {key: value for key, value in real.items() if key not in own}
    assert asked["priorityClassName"] == "low"
    assert asked["volumes"][1:] == real["volumes"][1:]
    (container,), (controllers,) = asked["containers"], real["containers"]
    assert {key for key in controllers if container.get(key) != controllers[key]} == {"command", "env"}


def test_it_is_the_first_hook_and_wants_nothing_that_another_one_creates() -> None:
    rendered = render()
    hooks = {name: manifest["metadata"]["annotations"] for name, manifest in rendered.items() if name.startswith("preflight/")}
    weights = {name: int(annotations["helm.sh/hook-weight"]) for name, annotations in hooks.items()}
    assert weights.pop("preflight/pod.yaml") < min(weights.values())
    pod = rendered["preflight/pod.yaml"]["spec"]
    assert pod["serviceAccountName"] == "default"  # every namespace has it
    assert [volume["configMap"] for volume in pod["volumes"] if "configMap" in volume] == [{"name": "demo-preflight", "optional": True}]


def test_it_ends_at_once_or_in_time_and_leaves_nothing() -> None:
    pod = render()["preflight/pod.yaml"]
    assert pod["spec"]["containers"][0]["command"] == ["itoolctl", "--version"]
    assert pod["spec"]["activeDeadlineSeconds"] < 300  # Helm's own limit
    assert pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == ALL


def test_it_can_be_left_out() -> None:
    assert "preflight/pod.yaml" not in render({"preflight": {"enabled": False}})
