"""The pieces that every pod of ours is made of: image, security, caches, volumes, credentials, placement. Pure: settings in, dicts out.

All pods pass Pod Security "restricted" with a read-only root; whatever wants to write finds an emptyDir at /scratch. Stage Jobs
(`manifests.py`) and serving (`serving_manifests.py`) are put together from these.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import yaml

from itool.cluster.objects import COMPONENT_LABEL, MANAGED_LABEL, NAME_LABEL, RUN_LABEL, VLLM_PORT, Object
from itool.config import RunConfig
from itool.config_kubernetes import PodConfig, Target
from itool.names import StageName
from itool.stages import StageId, computes_on_gpu

USER_ID = 10001
SCRATCH = "/scratch"
CONFIG_FOLDER = "/etc/itool"
CONFIG_FILE = "config.yaml"

WRITABLE = {
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "XDG_CACHE_HOME": f"{SCRATCH}/cache",
    "XDG_CONFIG_HOME": f"{SCRATCH}/config",
    "XDG_DATA_HOME": f"{SCRATCH}/data",
    "XDG_STATE_HOME": f"{SCRATCH}/state",
    "HF_HOME": f"{SCRATCH}/huggingface",
    "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH}/torchinductor",
    "TRITON_CACHE_DIR": f"{SCRATCH}/triton",
    "VLLM_CACHE_ROOT": f"{SCRATCH}/vllm",
}
"""Where libraries write when they are not asked. TMPDIR must exist when the process starts, so it is the mount itself."""

CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}

POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def image_of(config: RunConfig, target: Target) -> str:
    """The image of a build target: the one that is named for it, else repository, target and tag."""
    settings = config.kubernetes
    return settings.images.get(target) or f"{settings.image_repository}/{target}:{settings.image_tag}"


def labels(config: RunConfig, component: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Labels of everything that belongs to a run; the configured ones cannot replace ours."""
    ours = {NAME_LABEL: "itool", COMPONENT_LABEL: component, MANAGED_LABEL: "itool", RUN_LABEL: config.run}
    return {**config.kubernetes.labels, **ours, **(extra or {})}


def owner_name(run: str) -> str:
    """The ConfigMap that owns everything which the controller creates for a run."""
    return f"itool-run-{run}"


def owner_reference(owner: Object) -> Object:
    """A reference that lets Kubernetes collect an object with its owner."""
    metadata = owner["metadata"]
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}


def is_leftover(item: Object, owner: Object) -> bool:
    """Whether an object is being deleted, or waits for it because its owner is gone: an uninstalled release's, say, of the same run."""
    owners = {found["uid"] for found in item["metadata"].get("ownerReferences") or []}
    return "deletionTimestamp" in item["metadata"] or bool(owners - {owner["metadata"]["uid"]})


def serving_name(run: str) -> str:
    """The Deployment and the Service of the run's vLLM."""
    return f"{run}-vllm"


def pod_config(config: RunConfig, namespace: str) -> RunConfig:
    """The run's configuration as its pods see it: another S3 endpoint, the managed vLLM's address, and no runner of their own."""
    endpoint = config.kubernetes.store_endpoint_url or config.store.endpoint_url
    policy = config.policy
    if config.has_managed_serving:
        url = f"http://{serving_name(config.run)}.{namespace}.svc:{VLLM_PORT}"
        patience = max(policy.startup_seconds, config.kubernetes.serving.startup_seconds)  # what a replaced vLLM pod may take
        policy = policy.model_copy(update={"url": url, "adapters": "wait", "startup_seconds": patience})
    runtime = config.runtime.model_copy(update={"backend": "local", "warm_start": False, "log_format": "json"})
    store = config.store.model_copy(update={"endpoint_url": endpoint})
    return config.model_copy(update={"policy": policy, "runtime": runtime, "store": store})


def owner_object(config: RunConfig, owner: Object | None = None) -> Object:
    """The run's owner object. `owner` is the release's ConfigMap where a chart started the controller."""
    references = {"ownerReferences": [owner_reference(owner)]} if owner else {}
    metadata = {"name": owner_name(config.run), "labels": labels(config, "run"), **references}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"run": config.run, "root": config.root}}


def taken_name(owner: Object, config: RunConfig) -> tuple[str, str] | None:
    """What is wrong, and the remedy, when a run of this name in the namespace keeps its artifacts under another root; else None.

    Two such runs would take each other's Jobs for their own: a Job is named by run and content, and each root has a lease of its own.
    """
    root = str((owner.get("data") or {}).get("root", config.root))
    if root.rstrip("/") == config.root.rstrip("/"):
        return None
    namespace = owner["metadata"].get("namespace")
    where, option = (f"namespace {namespace}", f" -n {namespace}") if namespace else ("this namespace", "")
    finding = f"run {config.run} exists in {where} with root {root}, not {config.root}"
    return finding, f"Choose another `run`, or end that one: kubectl{option} delete configmap {owner['metadata']['name']}"


def config_object(config: RunConfig, namespace: str, owner: Object) -> Object:
    """The configuration for pods, under a name that is its content: pods of another configuration keep theirs.

    Without the section on Kubernetes, which no pod reads: another node selector is no other configuration.
    """
    document = pod_config(config, namespace).model_dump(mode="json", exclude={"kubernetes"})
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    name = f"itool-{config.run}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    metadata = {"name": name, "labels": labels(config, "run"), "ownerReferences": [owner_reference(owner)]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": {CONFIG_FILE: text}}


def gpus_of(config: RunConfig, stage: StageId | StageName) -> int:
    """GPUs of one pod of a stage: `pods.gpus` counts where the stage itself computes on a GPU, what `stages` says of it always."""
    name = stage.name if isinstance(stage, StageId) else stage
    needed = computes_on_gpu(config, name)
    configured = config.kubernetes.pod(name).gpus if needed or name in config.kubernetes.stages else 0
    return int(needed) if configured is None else configured


def container(
    config: RunConfig,
    pod: PodConfig,
    *,
    name: str,
    image: str,
    command: Sequence[str],
    gpus: int = 0,
    storage: str | None = None,
    env: Mapping[str, str] | None = None,
    mounts: Sequence[Object] = (),
) -> Object:
    """A container that can write to /scratch, reaches the store, and says its last words in its status. `pod.env` wins over `env`."""
    digest = {"ITOOL_IMAGE_DIGEST": image.partition("@")[2]} if "@" in image else {}
    values = {
        **WRITABLE,
        "OMP_NUM_THREADS": str(threads_of(config, pod)),
        "TOKENIZERS_PARALLELISM": "false",
        **digest,
        **(env or {}),
        **pod.env,
    }
    secret = config.kubernetes.credentials_secret
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": config.kubernetes.image_pull_policy,
        "command": list(command),
        "env": [{"name": key, "value": value} for key, value in values.items()],
        "envFrom": [{"secretRef": {"name": secret}}] if secret else [],
        "resources": resources(config, pod, gpus, storage),
        "securityContext": CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            {"name": "shm", "mountPath": "/dev/shm"},
            *mounts,
            *pod.volume_mounts,
        ],
    }


def resources(config: RunConfig, pod: PodConfig, gpus: int, storage: str | None = None) -> Object:
    """Requests and limits. Memory is limited to its request unless more is allowed; GPUs cannot be shared, so both are equal.

    `storage` is requested of the node's disk; its limit is that of the emptyDirs.
    """
    gpu = {config.kubernetes.gpu_resource: str(gpus)} if gpus else {}
    cpu_limit = {"cpu": pod.cpu_limit} if pod.cpu_limit else {}
    disk = {"ephemeral-storage": storage} if storage else {}
    return {
        "requests": {"cpu": pod.cpu, "memory": pod.memory, **disk, **gpu},
        "limits": {**cpu_limit, "memory": pod.memory_limit or pod.memory, **gpu},
    }


def threads_of(config: RunConfig, pod: PodConfig) -> int:
    """CPU threads of a pod: `runtime.threads`, else the cores that it may use. Libraries would count all cores of the node."""
    return config.runtime.threads or max(1, math.floor(_cores(pod.cpu_limit or pod.cpu)))


def pod_spec(
    config: RunConfig,
    pod: PodConfig,
    *,
    containers: Sequence[Object],
    service_account: str,
    init_containers: Sequence[Object] = (),
    volumes: Sequence[Object] = (),
) -> Object:
    """A pod's spec around its containers: security, scratch, /dev/shm, placement, grace. No service account token."""
    placement: Object = {
        "nodeSelector": pod.node_selector,
        "tolerations": pod.tolerations,
        "affinity": pod.affinity,
        "priorityClassName": pod.priority_class,
        "imagePullSecrets": [{"name": name} for name in config.kubernetes.image_pull_secrets],
        "initContainers": list(init_containers),
    }
    return {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": config.kubernetes.grace_seconds,
        "containers": list(containers),
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": pod.scratch}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}},
            *volumes,
            *pod.volumes,
        ],
        **{key: value for key, value in placement.items() if value},
    }


def config_volume(name: str) -> Object:
    """The volume `config` with the run's configuration; `CONFIG_MOUNT` puts it at /etc/itool."""
    return {"name": "config", "configMap": {"name": name}}


CONFIG_MOUNT: Object = {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}


def _cores(quantity: str) -> float:
    found = re.fullmatch(r"([0-9.]+)(m|k)?.*", quantity)
    assert found is not None
    return float(found[1]) * {"m": 0.001, "k": 1000.0}.get(found[2], 1.0)
