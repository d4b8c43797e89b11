"""What a stage's Job looks like: the fields that others rely on, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from itool.cluster.manifests import stage_job, workers_name, workers_service
from itool.cluster.pods import config_object, gpus_of, labels, owner_object, pod_config, serving_name, threads_of
from itool.config import RunConfig, parse_config
from itool.stages import StageId

OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "itool-run-demo", "uid": "u1"}}
KEY = "0123456789abcdef"
DPO, GENERATE = StageId(2, "dpo"), StageId(2, "generate")


def made(**document: Any) -> RunConfig:
    return parse_config({"root": "s3://b/p", "runtime": {"backend": "kubernetes"}, **document})


def job(stage: StageId = DPO, **document: Any) -> dict[str, Any]:
    return stage_job(made(**document), stage, KEY, 3, config_map="itool-demo-1", owner=OWNER)


def pod(stage: StageId = DPO, **document: Any) -> dict[str, Any]:
    spec: dict[str, Any] = job(stage, **document)["spec"]["template"]["spec"]
    return spec


def main(stage: StageId = DPO, **document: Any) -> dict[str, Any]:
    (container,) = pod(stage, **document)["containers"]
    return dict(container)


def test_a_job_is_named_and_labelled_by_what_it_makes_and_belongs_to_the_run() -> None:
    made_job = job()
    assert made_job["metadata"]["name"] == "demo-i2-dpo-01234567-3"
    expected = {
        "app.kubernetes.io/name": "itool",
        "app.kubernetes.io/component": "stage",
        "app.kubernetes.io/managed-by": "itool",
        "itool/run": "demo",
        "itool/iteration": "2",
        "itool/stage": "dpo",
        "itool/attempt": "3",
        "itool/key": KEY,
    }
    assert made_job["metadata"]["labels"] == made_job["spec"]["template"]["metadata"]["labels"] == expected
    assert made_job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "ConfigMap", "name": "itool-run-demo", "uid": "u1"}]


def test_the_longest_names_still_fit_a_pods_host_name() -> None:
    name = job(StageId(200, "generate"), run="r" * 53, iterations=200, search={"shards": 5000})["metadata"]["name"]
    assert len(f"{name}-4999") <= 63


def test_runs_with_long_names_share_no_job_and_no_service() -> None:
    """These two, as a sweep names its runs, agree in the first sixteen bits of their hash."""
    runs = [f"llama-31-8b-toolace-mcts-dpo-ablation-b1-seed-{number}" for number in (22, 73)]
    for names in (
        {job(run=run)["metadata"]["name"] for run in runs},
        {serving_name(run) for run in runs},
        {workers_name(run) for run in runs},
    ):
        assert len(names) == 2
    assert max(len(name_of("r" * 53)) for name_of in (serving_name, workers_name)) <= 63


def test_exit_codes_decide_and_disruptions_count_for_nothing() -> None:
    spec = job()["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "Ignore"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert [rule["onExitCodes"]["values"] for rule in rules[1:]] == [[64, 65, 76], [75]]
    assert {rule["onExitCodes"]["containerName"] for rule in rules[1:]} == {"stage"}
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert "ttlSecondsAfterFinished" not in spec  # only after the logs were kept


def test_a_plain_stage_is_one_pod_with_retries() -> None:
    spec = job(kubernetes={"backoff_limit": 4})["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (1, 1, 4)
    assert main()["command"] == ["python", "-m", "jobs.dpo", "--config", "/etc/itool/config.yaml", "--iteration", "2", "--key", KEY]


def test_shards_are_indexed_and_each_has_its_own_retries() -> None:
    more = {"search": {"shards": 500}, "kubernetes": {"backoff_limit": 4, "parallel_shards": 50}}
    spec = job(GENERATE, **more)["spec"]
    assert spec["completionMode"] == "Indexed"
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (500, 50, 4, 0)
    assert "backoffLimit" not in spec
    assert main(GENERATE, **more)["command"][-2:] == ["--shards", "500"]
    assert job(DPO, **more)["spec"]["completions"] == 1


def test_several_gpus_in_a_pod_go_through_accelerate() -> None:
    container = main(kubernetes={"stages": {"dpo": {"gpus": 4}}})
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    command = container["command"]
    assert command[:4] == ["python", "-m", "itool.train.launch", "accelerate"]
    assert command[command.index("--num_processes") + 1] == "4"
    assert command[command.index("-m", 3) + 1] == "jobs.dpo"


def test_several_nodes_meet_at_pod_0_through_the_headless_service() -> None:
    more = {"kubernetes": {"backoff_limit": 1, "stages": {"dpo": {"nodes": 3, "gpus": 8}}}}
    spec = job(DPO, **more)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 5  # two tries of three pods each, the last of which may not fail
    assert spec["template"]["spec"]["subdomain"] == "demo-workers"
    command = main(DPO, **more)["command"]
    assert command[3] == "torchrun"
    options = {flag: command[command.index(flag) + 1] for flag in ("--nnodes", "--nproc-per-node", "--node-rank", "--master-addr")}
    assert options == {
        "--nnodes": "3",
        "--nproc-per-node": "8",
        "--node-rank": "$(JOB_COMPLETION_INDEX)",
        "--master-addr": "demo-i2-dpo-01234567-3-0.demo-workers",
    }
    service = workers_service(made(**more), OWNER)
    assert service["metadata"]["name"] == "demo-workers"
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert service["spec"]["selector"] == {"itool/run": "demo", "app.kubernetes.io/component": "stage"}


def test_a_pod_requests_its_scratch_of_the_nodes_disk_unless_kueue_queues_it() -> None:
    pods = {"pods": {"scratch": "30Gi"}}
    assert main(kubernetes=pods)["resources"]["requests"]["ephemeral-storage"] == "30Gi"
    assert "ephemeral-storage" not in main(kubernetes=pods)["resources"]["limits"]
    assert "ephemeral-storage" not in main(kubernetes={**pods, "queue": "team"})["resources"]["requests"]


def test_every_pod_is_restricted_and_writes_to_scratch_alone() -> None:
    spec, container = pod(), main()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/scratch", "/dev/shm", "/etc/itool"}
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    writable = ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT")
    assert all(env[name].startswith("/scratch") for name in writable)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": "10Gi"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    assert volumes["config"]["configMap"] == {"name": "itool-demo-1"}


def test_placement_and_extras_come_from_the_stages_own_settings() -> None:
    own = {
        "cpu": "2",
        "memory": "8Gi",
        "memory_limit": "9Gi",
        "node_selector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priority_class": "high",
        "env": {"HF_HOME": "/models", "NCCL_DEBUG": "INFO"},
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "volume_mounts": [{"name": "models", "mountPath": "/models"}],
    }
    kubernetes = {
        "stages": {"dpo": own},
        "credentials_secret": "s3",
        "image_pull_secrets": ["registry"],
        "grace_seconds": 300,
        "queue": "team",
        "annotations": {"a": "b"},
        "labels": {"team": "x", "itool/run": "not-this"},
    }
    spec, container, made_job = pod(kubernetes=kubernetes), main(kubernetes=kubernetes), job(kubernetes=kubernetes)
    assert spec["nodeSelector"] == {"gpu": "a100"}
    assert (spec["tolerations"], spec["affinity"], spec["priorityClassName"]) == (own["tolerations"], own["affinity"], "high")
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["terminationGracePeriodSeconds"] == 300
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "9Gi", "nvidia.com/gpu": "1"},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (env["HF_HOME"], env["NCCL_DEBUG"], env["OMP_NUM_THREADS"]) == ("/models", "INFO", "2")
    assert spec["volumes"][-1] == own["volumes"][0]
    assert container["volumeMounts"][-1] == own["volume_mounts"][0]
    assert made_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert made_job["metadata"]["labels"]["team"] == "x"
    assert made_job["metadata"]["labels"]["itool/run"] == "demo"
    assert made_job["spec"]["suspend"] is True
    assert made_job["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
    assert "nodeSelector" not in pod(StageId(2, "score"), kubernetes=kubernetes)


@pytest.mark.parametrize(
    ("stage", "more", "gpus"),
    [
        ("prepare", {}, 0),
        ("report", {}, 0),
        ("warmup", {}, 1),
        ("score", {}, 1),
        ("generate", {}, 1),
        ("evaluate", {}, 1),
        ("generate", {"policy": {"backend": "vllm"}}, 0),
        ("evaluate", {"policy": {"backend": "vllm"}}, 0),
        ("score", {"policy": {"backend": "vllm"}}, 1),
        ("score", {"policy": {"backend": "vllm"}, "select": {"by": "pass_rate"}}, 0),
        ("dpo", {"policy": {"backend": "vllm"}}, 1),
        ("dpo", {"kubernetes": {"pods": {"gpus": 0}}}, 0),
        ("dpo", {"kubernetes": {"pods": {"gpus": 8}}}, 8),
        ("prepare", {"kubernetes": {"pods": {"gpus": 8}}}, 0),
        ("generate", {"policy": {"backend": "vllm"}, "kubernetes": {"pods": {"gpus": 1}}}, 0),
        ("generate", {"policy": {"backend": "vllm"}, "kubernetes": {"stages": {"generate": {"gpus": 1}}}}, 1),
    ],
)
def test_a_stage_asks_for_a_gpu_when_it_computes_itself(stage: Any, more: dict[str, Any], gpus: int) -> None:
    assert gpus_of(made(**more), stage) == gpus


def test_images_by_target_with_their_digest_in_the_environment() -> None:
    assert main()["image"] == "localhost/itool/dpo:dev"
    assert main(StageId(0, "prepare"))["image"] == "localhost/itool/warmup:dev"
    assert main(StageId(3, "report"))["image"] == "localhost/itool/controller:dev"
    container = main(kubernetes={"images": {"dpo": "registry/x@sha256:abc"}})
    assert container["image"] == "registry/x@sha256:abc"
    assert {"name": "ITOOL_IMAGE_DIGEST", "value": "sha256:abc"} in container["env"]


@pytest.mark.parametrize(
    ("kubernetes", "threads"), [({}, 1), ({"pods": {"cpu": "500m"}}, 1), ({"pods": {"cpu": "2", "cpu_limit": "3500m"}}, 3)]
)
def test_threads_follow_the_cores_that_a_pod_may_use(kubernetes: dict[str, Any], threads: int) -> None:
    config = made(kubernetes=kubernetes)
    assert threads_of(config, config.kubernetes.pods) == threads
    fixed = made(kubernetes=kubernetes, runtime={"backend": "kubernetes", "threads": 7})
    assert threads_of(fixed, fixed.kubernetes.pods) == 7


def test_pods_see_another_endpoint_and_the_managed_server() -> None:
    config = made(
        store={"endpoint_url": "http://127.0.0.1:9000"}, policy={"backend": "vllm"}, kubernetes={"store_endpoint_url": "http://s3:9000"}
    )
    seen = pod_config(config, "here")
    assert seen.store.endpoint_url == "http://s3:9000"
    assert (seen.policy.url, seen.policy.adapters) == ("http://demo-vllm.here.svc:8000", "wait")
    assert (seen.runtime.backend, seen.runtime.warm_start, seen.runtime.log_format) == ("local", False, "json")
    elsewhere = made(policy={"backend": "vllm", "url": "http://mine:1"})
    assert (pod_config(elsewhere, "here").policy.url, pod_config(elsewhere, "here").policy.adapters) == ("http://mine:1", "load")


def test_the_pods_configuration_is_named_by_its_content_and_knows_nothing_of_kubernetes() -> None:
    first = config_object(made(), "here", OWNER)
    moved = config_object(made(kubernetes={"pods": {"node_selector": {"a": "b"}}}), "here", OWNER)
    other = config_object(made(seed=18), "here", OWNER)
    assert first["metadata"]["name"] == moved["metadata"]["name"] != other["metadata"]["name"]
    assert first["immutable"] is True
    assert "kubernetes" not in first["data"]["config.yaml"].replace("backend: kubernetes", "")


def test_a_release_owns_the_run_that_it_started() -> None:
    release = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-config", "uid": "u0"}}
    assert owner_object(made(), release)["metadata"]["ownerReferences"][0]["uid"] == "u0"
    assert "ownerReferences" not in owner_object(made())["metadata"]
    assert owner_object(made())["metadata"]["labels"] == labels(made(), "run")
