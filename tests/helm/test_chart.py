"""The chart as a whole: its layout, its pods' security, its secrets, its version, its plain manifests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import itool.cluster.preflight
from helm.render import PROFILES, REPOSITORY, manifests
from itool.config import parse_config
from itool.config_kubernetes import DNS_LABEL
from tests.helm.rendering import CHART, POD_MONITOR, pod_specs, refusal, render

EVERYTHING: dict[str, Any] = {
    "run": {"policy": {"backend": "vllm"}, "kubernetes": {"serving": {"replicas": 2}, "stages": {"dpo": {"nodes": 2}}}},
    "podMonitor": {"enabled": True},
    "networkPolicy": {"extraEgress": [{"ports": [{"protocol": "TCP", "port": 443}]}]},
}


def test_each_template_has_a_test_file_of_its_name() -> None:
    templates = {
        path.relative_to(CHART / "templates") for path in (CHART / "templates").rglob("*") if path.is_file() and path.name[0] != "_"
    }
    named = {"test_" + re.sub(r"[/-]", "_", str(path.with_suffix(""))).lower() for path in templates}
    assert {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {"test_chart", "test_api_server"} == named


def test_each_template_renders_one_object_when_all_is_wanted() -> None:
    templates = {str(path.relative_to(CHART / "templates")) for path in (CHART / "templates").rglob("*.yaml")}
    assert set(render(EVERYTHING, "--api-versions", POD_MONITOR)) == templates - {"checks.yaml"}


def test_every_pod_passes_pod_security_restricted_with_a_read_only_root() -> None:
    pods = pod_specs(render())
    assert len(pods) == 4
    for pod in pods.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {volume["name"]: set(volume) - {"name"} for volume in pod["volumes"]} == {"config": {"configMap"}, "scratch": {"emptyDir"}}


def test_only_the_controller_and_the_test_get_a_token() -> None:
    tokens = {template: pod["automountServiceAccountToken"] for template, pod in pod_specs(render()).items()}
    assert {template for template, mounted in tokens.items() if mounted} == {"controller/job.yaml", "tests/doctor.yaml"}


def test_the_settings_of_pods_reach_every_pod() -> None:
    changes = {
        "run": {
            "kubernetes": {
                "image_pull_secrets": ["registry"],
                "images": {"controller": "registry.example/itool@sha256:0"},
                "labels": {"team": "a"},
            }
        },
        "controller": {
            "nodeSelector": {"zone": "b"},
            "tolerations": [{"key": "c"}],
            "priorityClass": "d",
            "resources": {"limits": {"cpu": "1"}},
        },
    }
    for pod in pod_specs(render(changes)).values():
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert (pod["nodeSelector"], pod["tolerations"], pod["priorityClassName"]) == ({"zone": "b"}, [{"key": "c"}], "d")
        assert pod["containers"][0]["image"] == "registry.example/itool@sha256:0"
        assert pod["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "512Mi"}
    assert all(manifest["metadata"]["labels"]["team"] == "a" for manifest in render(changes).values())


def test_a_private_ca_and_a_proxy_reach_every_pod_of_the_chart() -> None:
    ca, mount = {"name": "ca", "configMap": {"name": "company-ca"}}, {"name": "ca", "mountPath": "/ca", "readOnly": True}
    env = {"AWS_CA_BUNDLE": "/ca/ca.crt", "HTTPS_PROXY": "http://proxy:3128", "HOME": "/elsewhere"}
    for pod in pod_specs(render({"controller": {"env": env, "volumes": [ca], "volumeMounts": [mount]}})).values():
        (container,) = pod["containers"]
        assert env.items() <= {variable["name"]: variable["value"] for variable in container["env"]}.items()
        assert len({variable["name"] for variable in container["env"]}) == len(container["env"])
        assert (pod["volumes"][-1], container["volumeMounts"][-1]) == (ca, mount)
        assert [volume["name"] for volume in pod["volumes"]] == ["config", "scratch", "ca"]


def test_a_configured_label_cannot_replace_ours() -> None:
    rendered = render({"run": {"kubernetes": {"labels": {"itool/run": "other"}}}})
    assert {manifest["metadata"]["labels"]["itool/run"] for manifest in rendered.values()} == {"demo"}


def test_names_stay_short_and_numbers_stay_strings() -> None:
    rendered = render({"run": {"run": "17"}}, release="r" * 53)
    assert max(len(manifest["metadata"]["name"]) for manifest in rendered.values()) <= 63
    assert rendered["controller/job.yaml"]["spec"]["template"]["metadata"]["labels"]["itool/run"] == "17"


def test_two_long_releases_share_no_name() -> None:
    name = "training-of-the-assistant-with-every-tool"  # 41 characters
    names = [
        {manifest["metadata"]["name"] for manifest in render(release=release).values()}
        for release in (f"{name}-of-2026.a", f"{name}-of-2026.b", f"{name[:39]}.{name[:8]}")
    ]
    assert not names[0] & names[1]
    for name in set().union(*names):
        assert re.fullmatch(DNS_LABEL, name), name


def test_the_names_of_a_short_release_carry_it_whole() -> None:
    name = "r" * 45
    assert all(manifest["metadata"]["name"].startswith(f"{name}-") for manifest in render(release=name).values())


def test_credentials_are_named_never_given() -> None:
    rendered = render({"run": {"kubernetes": {"credentials_secret": "s3"}}})
    assert "Secret" not in {manifest["kind"] for manifest in rendered.values()}
    pods = pod_specs(rendered)
    assert "envFrom" not in pods.pop("preflight/pod.yaml")["containers"][0]  # it has nothing to do with S3
    for pod in pods.values():
        assert pod["containers"][0]["envFrom"][0]["secretRef"]["name"] == "s3"
        assert not [variable for variable in pod["containers"][0]["env"] if "AWS" in variable["name"]]
    schema = json.loads((CHART / "values.schema.json").read_text())
    keys = {key for section in [schema, *schema["$defs"].values()] for key in section.get("properties", {})}
    assert {key for key in keys if re.search("secret|password|credential|access_key", key)} == {"credentials_secret", "image_pull_secrets"}
    assert "'secret_access_key' not allowed" in refusal({"run": {"store": {"secret_access_key": "x"}}})


def test_chart_program_and_doctor_agree_on_versions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in project
    oldest = "{}.{}".format(*itool.cluster.preflight.OLDEST_VERSION)
    assert f'semverCompare "<{oldest}.0-0"' in (CHART / "templates" / "checks.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"runs": 3}, "- at '': additional properties 'runs' not allowed"),
        ({"run": {"dpo": {"bta": 1}}}, "- at '/run/dpo': additional properties 'bta' not allowed"),
        ({"run": {"iterations": "3"}}, "- at '/run/iterations': '3' does not match pattern '^a whole number, without quotes$'"),
        ({"run": {"iterations": 1.5}}, "- at '/run/iterations': got number, want integer"),
        ({"run": {"data": {"count": "5"}}}, "- at '/run/data/count': '5' does not match pattern '^a whole number or null"),
        ({"run": {"dpo": {"beta": "0.1"}}}, "- at '/run/dpo/beta': '0.1' does not match pattern '^a number, without quotes (--set-json)$'"),
        ({"preflight": {"enabled": "no"}}, "- at '/preflight/enabled': 'no' does not match pattern '^true or false, without quotes$'"),
        (
            {"networkPolicy": {"store": {"ports": ["http"]}}},
            "- at '/networkPolicy/store/ports/0': 'http' does not match pattern '^a whole number, without quotes$'",
        ),
        (
            {"run": {"kubernetes": {"stages": {"dpo": {"nodes": "2"}}}}},
            "- at '/run/kubernetes/stages/dpo/nodes': '2' does not match pattern '^a whole number, without quotes$'",
        ),
        ({"run": {"run": "Bad_Name"}}, "- at '/run/run': 'Bad_Name' does not match pattern '^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$'"),
        (
            {"run": {"kubernetes": {"image_tag": 1.2}}},
            "- at '/run/kubernetes/image_tag': value must be 'a string in quotes (--set-string)'",
        ),
        (
            {"run": {"kubernetes": {"pods": {"memory_limit": "2GB"}}}},
            "- at '/run/kubernetes/pods/memory_limit': '2GB' does not match pattern",
        ),
        ({"run": {"kubernetes": {"stages": {"train": {}}}}}, "- at '/run/kubernetes/stages': additional properties 'train' not allowed"),
        ({"run": {"policy": {"backend": "vlm"}}}, "- at '/run/policy/backend': 'vlm' does not match pattern '^(embedded|vllm)$'"),
        ({"run": {"kubernetes": {"serving": {"device": "gpu"}}}}, "- at '/run/kubernetes/serving/device': 'gpu' does not match pattern"),
        (
            {"controller": {"resources": {"limits": {"memory": "5XB"}}}},
            "- at '/controller/resources/limits/memory': '5XB' does not match pattern '^a quantity, like 500m or 2Gi$'",
        ),
        (
            {"run": {"store": {"endpoint_url": "http://minio:port"}}},
            "- at '/run/store/endpoint_url': 'http://minio:port' does not match pattern '^an address, like http://minio:9000$'",
        ),
        ({"controller": {"nodeSelector": {"zone": "a b"}}}, "- at '/controller/nodeSelector/zone': 'a b' does not match pattern"),
        ({"serviceAccounts": {"jobs": {"name": "My_Account"}}}, "- at '/serviceAccounts/jobs/name': 'My_Account' does not match pattern"),
        ({"podMonitor": {"peers": []}}, "- at '/podMonitor/peers': minItems: got 0, want 1"),
        ({"podMonitor": {"labels": {"a b": "c"}}}, "- at '/podMonitor/labels': additional properties 'a b' not allowed"),
        ({"networkPolicy": {"apiServer": {"ports": []}}}, "- at '/networkPolicy/apiServer/ports': minItems: got 0, want 1"),
        (
            {"networkPolicy": {"apiServer": {"cidrs": ["999.0.0.1/32"]}}},
            "- at '/networkPolicy/apiServer/cidrs/0': '999.0.0.1/32' does not match pattern '^an address range, like 10.0.0.0/8",
        ),
        ({"networkPolicy": {"dnsPeers": [{"foo": {}}]}}, "- at '/networkPolicy/dnsPeers/0': additional properties 'foo' not allowed"),
        ({"run": {"kubernetes": {"credentials_secret": "Bad_Name"}}}, "- at '/run/kubernetes/credentials_secret': 'Bad_Name' does not"),
        ({"run": {"policy": "vllm"}}, "- at '/run/policy': 'vllm' does not match pattern '^a mapping, in braces (--set-json)$'"),
        (
            {"controller": {"env": {"DEBUG": True}}},
            "- at '/controller/env/DEBUG': value must be 'a string in quotes (--set-string), not true'",
        ),
        (
            {"controller": {"priorityClass": False}},
            "- at '/controller/priorityClass': value must be 'null, or a string in quotes (--set-string), not false'",
        ),
        ({"controller": {"env": {"A B": "c"}}}, "- at '/controller/env': additional properties 'A B' not allowed"),
        ({"controller": {"env": {"DEBUG": 1}}}, "- at '/controller/env/DEBUG': value must be 'a string in quotes (--set-string)'"),
        (
            {"controller": {"priorityClass": 3}},
            "- at '/controller/priorityClass': value must be 'null, or a string in quotes (--set-string)'",
        ),
        (
            {"controller": {"nodeSelector": "zone"}},
            "- at '/controller/nodeSelector': 'zone' does not match pattern '^a mapping, in braces (--set-json)$'",
        ),
        (
            {"networkPolicy": {"apiServer": {"cidrs": "10.0.0.1/32"}}},
            "- at '/networkPolicy/apiServer/cidrs': '10.0.0.1/32' does not match pattern '^a list, in brackets (--set-json)$'",
        ),
    ],
)
def test_an_unknown_or_ill_typed_value_is_refused_in_a_line_that_names_the_key(changes: dict[str, Any], line: str) -> None:
    assert line in refusal(changes)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("run", "- at '': missing property 'run'"),
        ("run.run", "- at '/run': missing property 'run'"),
        ("run.policy", "- at '/run': missing property 'policy'"),
        ("run.kubernetes.serving.replicas", "- at '/run/kubernetes/serving': missing property 'replicas'"),
        ("networkPolicy.enabled", "- at '/networkPolicy': missing property 'enabled'"),
        ("serviceAccounts.jobs.create", "- at '/serviceAccounts/jobs': missing property 'create'"),
    ],
)
def test_null_cannot_take_a_default_away(key: str, line: str) -> None:
    assert line in refusal({}, "--set", f"{key}=null")


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_plain_manifests_are_what_the_chart_renders(profile: str) -> None:
    rendered = {path: yaml.safe_load(text) for path, text in manifests(profile).items()}
    files = sorted((REPOSITORY / "k8s" / profile).rglob("*.yaml"))
    kept = {str(path.relative_to(REPOSITORY / "k8s")): yaml.safe_load(path.read_text()) for path in files}
    assert kept == rendered, "k8s/ is stale: run `make k8s`"


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_a_profile_is_a_valid_configuration(profile: str) -> None:
    text = manifests(profile)[f"{profile}/config-map.yaml"]
    config = parse_config(yaml.safe_load(yaml.safe_load(text)["data"]["config.yaml"]))
    assert (config.runtime.backend, config.policy.backend) == ("kubernetes", "vllm")


@pytest.mark.parametrize("page", ["README.md", "helm/itool/README.md", "helm/itool/templates/NOTES.txt", "docs/operations.md"])
def test_an_upgrade_keeps_the_values_and_takes_the_new_keys_of_the_chart(page: str) -> None:
    assert "upgrade" in (text := (REPOSITORY / page).read_text())
    assert "--reset-then-reuse-values --set run.iterations" in text
