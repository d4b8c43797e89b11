"""vLLM's Deployment and headless Service as pure functions: configuration and a base model in, Kubernetes objects out.

A pod fetches the base model (init container), then runs vLLM beside the keeper of its adapters (native sidecar). It is ready when vLLM
answers and the keeper has proved the wished adapter. Only the first two know the store's credentials; none has an API token.
"""

from __future__ import annotations

import hashlib
import json
import math

from itool.cluster.adapter_keeper import ADAPTERS_FOLDER, MODEL_FOLDER, POD_VARIABLE, READY_PORT, KeeperSettings
from itool.cluster.objects import COMPONENT_LABEL, RUN_LABEL, VLLM_PORT, Object
from itool.cluster.pods import container, image_of, labels, owner_reference, pod_config, pod_spec, serving_name
from itool.cluster.wish import StoredArtifact
from itool.config import RunConfig
from itool.config_kubernetes import PodConfig
from itool.policy.server import SERVER_SETTINGS, server_arguments

TEMPLATE_LABEL = "itool/template"
"""Hash of the pod template: tells pods of an earlier configuration, or base model, from those that are wanted."""

FETCHER, KEEPER, VLLM = "fetch-model", "adapter-keeper", "vllm"
KEEPER_POD = PodConfig(cpu="100m", memory="512Mi")
KEEPER_CPU_LIMIT = "1"

LEAVE_SECONDS = 5
"""Between the end of the pod's address in DNS and SIGTERM."""

DRAIN_SECONDS = 30
"""vLLM finishes what it has begun for so long; without it, it aborts at once."""

PROBE_SECONDS = 5


def serving_deployment(config: RunConfig, model: StoredArtifact, context_tokens: int, *, namespace: str, owner: Object) -> Object:
    """The Deployment of the run's vLLM, as many replicas as wanted. `context_tokens` is what the base model can read.

    Recreate, not a rolling update: where vLLM holds every GPU there is none for one pod more.
    """
    template = pod_template(config, model, context_tokens, namespace)
    selector = {key: template["metadata"]["labels"][key] for key in (COMPONENT_LABEL, RUN_LABEL)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": serving_name(config.run),
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": {
            "replicas": config.kubernetes.serving.replicas,
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": selector},
            "template": template,
        },
    }


def serving_service(config: RunConfig, owner: Object) -> Object:
    """The headless Service: its name resolves to the addresses of all pods that are ready."""
    found = labels(config, "serving")
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": serving_name(config.run), "labels": found, "ownerReferences": [owner_reference(owner)]},
        "spec": {
            "clusterIP": "None",
            "selector": {key: found[key] for key in (COMPONENT_LABEL, RUN_LABEL)},
            "ports": [{"name": "http", "port": VLLM_PORT, "targetPort": "http"}],
        },
    }


def pod_template(config: RunConfig, model: StoredArtifact, context_tokens: int, namespace: str) -> Object:
    """The pods' template, with its own hash as a label."""
    serving = config.kubernetes.serving
    spec = pod_spec(
        config,
        serving,
        containers=[_vllm(config, context_tokens)],
        init_containers=_keepers(config, model, namespace),
        service_account=config.kubernetes.serving_service_account,
        volumes=[{"name": name, "emptyDir": {"sizeLimit": serving.scratch}} for name in ("models", "adapters")],
    )
    spec["terminationGracePeriodSeconds"] = LEAVE_SECONDS + DRAIN_SECONDS + 15
    metadata = {"labels": labels(config, "serving"), "annotations": config.kubernetes.annotations}
    digest = hashlib.sha256(json.dumps([metadata, spec], sort_keys=True).encode()).hexdigest()[:10]
    return {"metadata": {**metadata, "labels": {**metadata["labels"], TEMPLATE_LABEL: digest}}, "spec": spec}


def template_of(item: Object) -> str:
    """The hash of the template that a Deployment or a pod was made from."""
    return str((item["metadata"].get("labels") or {}).get(TEMPLATE_LABEL, ""))


def change_to(deployment: Object, standing: Object) -> Object:
    """A merge patch that turns a standing Deployment into this one. A template of the same hash is left alone, so that no pod restarts."""
    replicas = {"replicas": deployment["spec"]["replicas"]}
    if template_of(standing) == template_of(deployment):
        return {"spec": replicas}
    labels = _replacing(deployment["metadata"]["labels"], standing["metadata"].get("labels") or {})
    template = _replacing(deployment["spec"]["template"], standing["spec"]["template"])
    return {"metadata": {"labels": labels}, "spec": {**replicas, "template": template}}


def _replacing(wanted: Object, standing: Object) -> Object:
    """What makes a merge patch replace maps, which it would unite: keys that are not wanted are null. The server's defaults come back."""
    kept = {
        key: _replacing(value, standing[key]) if isinstance(value, dict) and isinstance(standing.get(key), dict) else value
        for key, value in wanted.items()
    }
    return {**dict.fromkeys(standing.keys() - wanted.keys()), **kept}


def _vllm(config: RunConfig, context_tokens: int) -> Object:
    serving, on_cpu = config.kubernetes.serving, config.kubernetes.serving.runs_on_cpu
    gpus = serving.pod_gpus
    arguments = server_arguments(
        MODEL_FOLDER, context_tokens, config.model, port=VLLM_PORT, max_requests=config.policy.max_requests, gpu=not on_cpu, host="0.0.0.0"
    )
    if gpus > 1 and not on_cpu:
        arguments += ["--tensor-parallel-size", str(gpus)]
    arguments += ["--shutdown-timeout", str(DRAIN_SECONDS), "--disable-uvicorn-access-log", *serving.arguments]
    user = {"USER": "itool"}  # libraries ask for the name of a user id that the image may not know
    made = container(
        config,
        serving,
        name=VLLM,
        image=serving.image or image_of(config, "vllm-cpu"),
        command=["python3", "-m", "vllm.entrypoints.openai.api_server", *arguments],
        gpus=gpus,
        storage=serving.scratch,  # once: the weights fill most of one of the three emptyDirs, the others hold little
        env={**SERVER_SETTINGS, **user, **({"VLLM_CPU_KVCACHE_SPACE": str(serving.kv_cache_gib)} if on_cpu else {})},
        mounts=[_mount("models", MODEL_FOLDER.parent, read_only=True), _mount("adapters", ADAPTERS_FOLDER, read_only=True)],
    )
    return {
        **made,
        "envFrom": [],
        "ports": [{"name": "http", "containerPort": VLLM_PORT}],
        "startupProbe": _probe("/v1/models", "http", failures=math.ceil(serving.startup_seconds / PROBE_SECONDS)),
        "readinessProbe": _probe("/v1/models", "http", failures=6),
        "livenessProbe": _probe("/health", "http", failures=12),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVE_SECONDS)]}}},
    }


def _keepers(config: RunConfig, model: StoredArtifact, namespace: str) -> list[Object]:
    """The init container that fetches the base model, and the sidecar: small, but with the proxies and certificates of the pod.

    They have a CPU limit where vLLM has one: a quota on limits.cpu refuses a pod with a container that has none.
    """
    serving = config.kubernetes.serving
    limit = KEEPER_CPU_LIMIT if serving.cpu_limit else None
    pod = KEEPER_POD.model_copy(update={"env": serving.env, "volume_mounts": serving.volume_mounts, "cpu_limit": limit})
    settings = KeeperSettings(
        root=config.root,
        run=config.run,
        store=pod_config(config, namespace).store,
        model=model,
        context_tokens=config.model.context_tokens,
        timeout_seconds=config.policy.timeout_seconds,
    )
    image = image_of(config, "controller")

    def command(what: str) -> list[str]:
        return ["python3", "-m", "itool.cluster.adapter_keeper", what, "--settings", settings.model_dump_json()]

    fetcher_mounts = [_mount("models", MODEL_FOLDER.parent)]
    keeper_mounts = [_mount("models", MODEL_FOLDER.parent, read_only=True), _mount("adapters", ADAPTERS_FOLDER)]
    fetcher = container(config, pod, name=FETCHER, image=image, command=command("fetch"), mounts=fetcher_mounts)
    keeper = container(config, pod, name=KEEPER, image=image, command=command("keep"), mounts=keeper_mounts)
    pod_name = {"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    sidecar = {
        **keeper,
        "restartPolicy": "Always",
        "env": [*keeper["env"], pod_name],
        "ports": [{"name": "ready", "containerPort": READY_PORT}],
        "readinessProbe": {**_probe("/ready", "ready", failures=1), "periodSeconds": 2},
    }
    return [fetcher, sidecar]


def _probe(path: str, port: str, *, failures: int) -> Object:
    """A busy CPU build takes seconds to answer, so each try may take long, and several are needed to say that it is gone."""
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": PROBE_SECONDS, "timeoutSeconds": 10, "failureThreshold": failures}


def _mount(name: str, path: object, *, read_only: bool = False) -> Object:
    return {"name": name, "mountPath": str(path), **({"readOnly": True} if read_only else {})}
