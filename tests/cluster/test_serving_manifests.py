"""vLLM's Deployment and Service, read as plain objects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from itool.cluster.adapter_keeper import POD_VARIABLE, KeeperSettings
from itool.cluster.serving_manifests import change_to, serving_deployment, serving_service, template_of
from itool.cluster.wish import StoredArtifact
from itool.config import RunConfig

MODEL = StoredArtifact(prefix="demo/i0/prepare/key", digest="a" * 64)
OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "itool-run-demo", "uid": "1-2"}}


def configured(serving: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    kubernetes = {"serving": serving or {}, "credentials_secret": "s3-credentials", **sections.pop("kubernetes", {})}
    document = {"root": "s3://bucket/runs", "runtime": {"backend": "kubernetes"}, "policy": {"backend": "vllm"}, "kubernetes": kubernetes}
    return RunConfig.model_validate({"model": {"dtype": "bfloat16"}, **document, **sections})


def deployment(config: RunConfig, model: StoredArtifact = MODEL) -> dict[str, Any]:
    return serving_deployment(config, model, 512, namespace="training", owner=OWNER)


def spec_of(config: RunConfig) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(config)["spec"]["template"]["spec"]
    return spec


def containers(config: RunConfig) -> dict[str, dict[str, Any]]:
    spec = spec_of(config)
    return {found["name"]: found for found in [*spec["initContainers"], *spec["containers"]]}


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_float32_is_for_vllms_cpu_build_only() -> None:
    on_a_gpu: dict[str, Any] = {"serving": {"image": "vllm@sha256:0"}, "model": {"dtype": "float32"}}
    with pytest.raises(ValueError, match=r"model\.dtype = 'float32': vLLM computes adapters on a GPU in bfloat16 only; use bfloat16"):
        configured(**on_a_gpu)
    assert configured({"image": "vllm@sha256:0", "device": "cpu"}, model={"dtype": "float32"}).kubernetes.serving.runs_on_cpu
    assert configured(policy={"backend": "vllm", "url": "http://elsewhere"}, **on_a_gpu).model.dtype == "float32"


def test_the_model_is_fetched_first_and_the_keeper_runs_beside_vllm() -> None:
    spec = spec_of(configured())
    assert [found["name"] for found in spec["initContainers"]] == ["fetch-model", "adapter-keeper"]
    assert [found.get("restartPolicy") for found in spec["initContainers"]] == [None, "Always"]
    assert [found["name"] for found in spec["containers"]] == ["vllm"]
    mounts = {
        name: {mount["mountPath"]: mount.get("readOnly", False) for mount in found["volumeMounts"]}
        for name, found in containers(configured()).items()
    }
    assert mounts["fetch-model"]["/models"] is False
    assert (mounts["adapter-keeper"]["/models"], mounts["adapter-keeper"]["/adapters"]) == (True, False)
    assert (mounts["vllm"]["/models"], mounts["vllm"]["/adapters"], mounts["vllm"]["/dev/shm"]) == (True, True, False)


def test_only_the_keepers_know_the_stores_credentials_and_nobody_has_a_token() -> None:
    found = containers(configured())
    secret = [{"secretRef": {"name": "s3-credentials"}}]
    assert [found[name]["envFrom"] for name in ("fetch-model", "adapter-keeper", "vllm")] == [secret, secret, []]
    assert spec_of(configured())["automountServiceAccountToken"] is False


def test_a_private_authority_and_a_proxy_reach_every_container() -> None:
    ours = {"env": {"AWS_CA_BUNDLE": "/ca/ca.pem"}, "volume_mounts": [{"name": "ca", "mountPath": "/ca"}]}
    found = containers(configured({**ours, "volumes": [{"name": "ca", "configMap": {"name": "ca"}}]}))
    assert {environment(container)["AWS_CA_BUNDLE"] for container in found.values()} == {"/ca/ca.pem"}
    assert all({"name": "ca", "mountPath": "/ca"} in container["volumeMounts"] for container in found.values())


def test_every_container_passes_pod_security_restricted() -> None:
    spec = spec_of(configured())
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for found in containers(configured()).values():
        assert found["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip


def test_probes_ask_vllm_and_the_keeper() -> None:
    found = containers(configured({"startup_seconds": 900}))
    paths = {kind: found["vllm"][kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/v1/models", "readinessProbe": "/v1/models", "livenessProbe": "/health"}
    startup = found["vllm"]["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 900
    assert found["adapter-keeper"]["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "ready"}
    assert found["adapter-keeper"]["ports"] == [{"name": "ready", "containerPort": 8001}]


def test_the_keeper_knows_its_pods_name_under_which_it_writes_its_proof() -> None:
    own_name = {"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert own_name in containers(configured())["adapter-keeper"]["env"]


def test_the_grace_period_is_longer_than_leaving_and_draining() -> None:
    vllm = containers(configured())["vllm"]
    leaving = int(vllm["lifecycle"]["preStop"]["exec"]["command"][1])
    draining = int(vllm["command"][vllm["command"].index("--shutdown-timeout") + 1])
    assert spec_of(configured())["terminationGracePeriodSeconds"] > leaving + draining


def test_a_gpu_is_asked_for_unless_none_is_wanted_or_of_use() -> None:
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({"gpus": 2}, "2"),
        ({"image": "vllm/vllm-openai@sha256:0"}, "1"),
        ({"image": "vllm/vllm-openai@sha256:0", "gpus": 2}, "2"),
        ({"image": "mirror/vllm-cpu@sha256:0", "device": "cpu"}, None),
        ({"image": "mirror/vllm-cpu@sha256:0", "gpus": 0}, None),
        ({"device": "cuda"}, "1"),
    ]
    for serving, limit in cases:
        resources = containers(configured(serving))["vllm"]["resources"]
        assert resources["limits"].get("nvidia.com/gpu") == limit, serving
        assert resources["requests"].get("nvidia.com/gpu") == limit, serving
    assert "nvidia.com/gpu" not in containers(configured())["adapter-keeper"]["resources"]["limits"]


def test_a_quota_on_cpu_limits_accepts_the_pod_where_a_limit_is_set() -> None:
    limits = {name: found["resources"]["limits"].get("cpu") for name, found in containers(configured({"cpu_limit": "8"})).items()}
    assert limits == {"fetch-model": "1", "adapter-keeper": "1", "vllm": "8"}
    assert all("cpu" not in found["resources"]["limits"] for found in containers(configured()).values())


def test_a_pod_requests_its_scratch_once_of_the_nodes_disk() -> None:
    requests = {name: found["resources"]["requests"] for name, found in containers(configured({"scratch": "30Gi"})).items()}
    assert {name: request.get("ephemeral-storage") for name, request in requests.items()} == {
        "fetch-model": None,
        "adapter-keeper": None,
        "vllm": "30Gi",
    }


@pytest.mark.parametrize(
    ("serving", "on_cpu"),
    [
        ({}, True),
        ({"image": "vllm/vllm-openai@sha256:0"}, False),
        ({"image": "mirror/vllm-cpu@sha256:0", "gpus": 0}, True),
        ({"image": "mirror/vllm-cpu@sha256:0", "device": "cpu"}, True),
        ({"device": "cuda"}, False),
    ],
)
def test_the_cpu_build_gets_the_flags_of_a_local_server(serving: dict[str, Any], on_cpu: bool) -> None:
    vllm = containers(configured({**serving, "kv_cache_gib": 3}))["vllm"]
    assert ("--enforce-eager" in vllm["command"]) is on_cpu
    assert ("VLLM_CPU_KVCACHE_SPACE" in environment(vllm)) is on_cpu


def test_the_server_is_told_what_the_run_is_configured_for() -> None:
    config = configured(
        {"image": "vllm/vllm-openai@sha256:0", "gpus": 4, "arguments": ["--max-num-seqs", "64"]},
        model={"lora_rank": 64, "dtype": "bfloat16"},
    )
    vllm = containers(config)["vllm"]
    command = vllm["command"]
    flags = {flag: command[command.index(flag) + 1] for flag in command if flag.startswith("--") and command[-1] != flag}
    assert vllm["image"] == "vllm/vllm-openai@sha256:0"
    assert (flags["--model"], flags["--host"], flags["--port"]) == ("/models/base", "0.0.0.0", "8000")
    assert (flags["--dtype"], flags["--max-model-len"], flags["--max-lora-rank"], flags["--max-loras"]) == ("bfloat16", "512", "64", "2")
    assert flags["--tensor-parallel-size"] == "4"
    assert command[-2:] == ["--max-num-seqs", "64"]
    assert environment(vllm)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_the_images_are_the_configured_ones() -> None:
    found = containers(configured(kubernetes={"image_repository": "registry/itool", "image_tag": "1.2"}))
    assert [found[name]["image"] for name in ("fetch-model", "adapter-keeper", "vllm")] == [
        "registry/itool/controller:1.2",
        "registry/itool/controller:1.2",
        "registry/itool/vllm-cpu:1.2",
    ]


def test_the_keepers_reach_the_store_as_pods_do() -> None:
    config = configured(kubernetes={"store_endpoint_url": "http://s3.storage:9000"}, store={"endpoint_url": "http://127.0.0.1:9000"})
    for name in ("fetch-model", "adapter-keeper"):
        command = containers(config)[name]["command"]
        settings = KeeperSettings.model_validate_json(command[-1])
        assert (settings.root, settings.run, settings.model) == ("s3://bucket/runs", "demo", MODEL)
        assert settings.store.endpoint_url == "http://s3.storage:9000"


def test_a_full_cluster_can_replace_a_pod() -> None:
    spec = deployment(configured({"replicas": 3}))["spec"]
    assert (spec["replicas"], spec["strategy"]) == (3, {"type": "Recreate"})


def test_the_service_has_no_address_of_its_own_and_selects_the_runs_pods() -> None:
    config = configured()
    service, made = serving_service(config, OWNER), deployment(config)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]
    assert service["metadata"]["name"] == made["metadata"]["name"] == "demo-vllm"
    selector = service["spec"]["selector"]
    assert selector == made["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/component": "serving", "itool/run": "demo"}
    assert selector.items() <= made["spec"]["template"]["metadata"]["labels"].items()
    for item in (service, made):
        assert item["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "ConfigMap", "name": "itool-run-demo", "uid": "1-2"}]


def test_more_iterations_or_replicas_do_not_restart_vllm_but_another_model_or_image_does() -> None:
    first = template_of(deployment(configured()))
    assert template_of(deployment(configured({"replicas": 2}, iterations=7, dpo={"beta": 0.2}))) == first
    others = [
        deployment(configured(), StoredArtifact(prefix=MODEL.prefix, digest="b" * 64)),
        deployment(configured({"image": "other"})),
        deployment(configured({"arguments": ["--seed", "1"]})),
        deployment(configured(kubernetes={"credentials_secret": "another"})),
    ]
    assert len({first, *(template_of(found) for found in others)}) == 5


def test_annotations_and_labels_of_the_pods_are_part_of_the_template() -> None:
    first, *others = (
        template_of(deployment(configured(kubernetes=changed)))
        for changed in ({}, {"annotations": {"team": "a"}}, {"annotations": {"team": "b"}}, {"labels": {"team": "a"}})
    )
    assert len({first, *others}) == 4


def test_a_change_removes_what_is_no_longer_there() -> None:
    placed = deployment(configured({"node_selector": {"gpu": "h200"}}))
    change = change_to(deployment(configured()), placed)
    assert change["spec"]["template"]["spec"]["nodeSelector"] is None
    assert change["spec"]["template"]["spec"]["containers"] == spec_of(configured())["containers"]
    assert change_to(placed, deployment(configured()))["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert "selector" not in change["spec"]


def test_replicas_alone_leave_the_template_as_it_stands() -> None:
    assert change_to(deployment(configured({"replicas": 2})), deployment(configured())) == {"spec": {"replicas": 2}}


def test_everything_is_plain_data() -> None:
    made = deployment(configured({"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "env": {"A": "b"}}))
    assert json.loads(json.dumps(made)) == made
