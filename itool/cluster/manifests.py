"""Stage Jobs as pure functions: configuration and an attempt in, Kubernetes objects out.

Who retries what: the Job starts its pods again, by exit code and up to `kubernetes.backoff_limit` times (each shard for itself); the
controller only decides whether a Job that failed for good is followed by another one. Why: docs/decisions/0024.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from itool.cluster.objects import ATTEMPT_LABEL, COMPONENT_LABEL, ITERATION_LABEL, KEY_LABEL, QUEUE_LABEL, RUN_LABEL, STAGE_LABEL, Object
from itool.cluster.pods import (
    CONFIG_FILE,
    CONFIG_FOLDER,
    CONFIG_MOUNT,
    config_volume,
    container,
    gpus_of,
    image_of,
    labels,
    owner_reference,
    pod_spec,
)
from itool.config import RunConfig
from itool.config_kubernetes import StagePodConfig, Target
from itool.errors import NEVER_AGAIN, Interrupted
from itool.names import TRAINING_STAGES, StageName
from itool.stages import StageId, shards_of

STAGE_CONTAINER = "stage"
RENDEZVOUS_PORT = 29400
LONGEST_RUN_NAME = 30
"""In the names of Jobs."""

TARGETS: dict[StageName, Target] = {
    "prepare": "warmup",
    "warmup": "warmup",
    "score": "score",
    "generate": "generate",
    "dpo": "dpo",
    "evaluate": "evaluate",
    "report": "controller",
}
"""The image of each stage. `prepare` needs the training libraries for the base model; `report` needs none of them."""


def job_name(config: RunConfig, stage: StageId, key: str, attempt: int) -> str:
    """`<run>-i<k>-<stage>-<key>-<attempt>`, short enough for its pods' host names.

    A run's name that is cut ends in a hash: two runs of one namespace with equal keys must not share a Job.
    """
    run = config.run
    if len(run) > LONGEST_RUN_NAME:
        run = f"{run[: LONGEST_RUN_NAME - 9].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"
    return f"{run}-i{stage.iteration}-{stage.name}-{key[:8]}-{attempt}"


def workers_name(run: str) -> str:
    """The headless Service through which the pods of a training that spans nodes find each other."""
    return f"{run}-workers"


def stage_job(config: RunConfig, stage: StageId, key: str, attempt: int, *, config_map: str, owner: Object) -> Object:
    """The Job of one attempt of a stage. `config_map` holds the pods' configuration, `owner` is the run's owner object."""
    pod, shards = config.kubernetes.pod(stage.name), shards_of(config, stage)
    name = job_name(config, stage, key, attempt)
    identity = {
        ITERATION_LABEL: str(stage.iteration),
        STAGE_LABEL: stage.name,
        ATTEMPT_LABEL: str(attempt),
        KEY_LABEL: key,
    }
    queue = {QUEUE_LABEL: config.kubernetes.queue} if config.kubernetes.queue else {}
    metadata = {"name": name, "labels": labels(config, "stage", identity) | queue, "ownerReferences": [owner_reference(owner)]}
    main = container(
        config,
        pod,
        name=STAGE_CONTAINER,
        image=image_of(config, TARGETS[stage.name]),
        command=stage_command(config, stage, key, name),
        gpus=gpus_of(config, stage),
        storage=None if queue else pod.scratch,  # Kueue admits no Job that asks for more kinds of resources than its queue names
        mounts=[CONFIG_MOUNT],
    )
    spec = pod_spec(
        config,
        pod,
        containers=[main],
        service_account=config.kubernetes.job_service_account,
        volumes=[config_volume(config_map)],
    )
    network = {"subdomain": workers_name(config.run)} if pod.nodes > 1 else {}
    template_metadata = {"labels": labels(config, "stage", identity), "annotations": config.kubernetes.annotations}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            **completion(config, pod, shards),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": failure_rules()},
            "suspend": bool(queue),
            "template": {"metadata": template_metadata, "spec": {"restartPolicy": "Never", **network, **spec}},
        },
    }


def completion(config: RunConfig, pod: StagePodConfig, shards: int) -> Object:
    """How many pods, how many at a time, and how often each is tried again."""
    retries = config.kubernetes.backoff_limit
    if shards > 1:
        # a shard that has used up its tries fails the Job at once: what the others have finished is kept in the store
        return {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": min(shards, config.kubernetes.parallel_shards),
            "backoffLimitPerIndex": retries,
            "maxFailedIndexes": 0,
        }
    if pod.nodes > 1:
        # one worker's end ends them all, so each common try costs up to one failure per node
        return {
            "completionMode": "Indexed",
            "completions": pod.nodes,
            "parallelism": pod.nodes,
            "backoffLimit": (retries + 1) * pod.nodes - 1,
        }
    return {"completions": 1, "parallelism": 1, "backoffLimit": retries}


def failure_rules() -> list[Object]:
    """The exit-code contract; the first rule that fits decides, and what fits none counts as a failure."""

    def on_codes(action: str, codes: Sequence[int]) -> Object:
        return {"action": action, "onExitCodes": {"containerName": STAGE_CONTAINER, "operator": "In", "values": list(codes)}}

    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [disrupted, on_codes("FailJob", NEVER_AGAIN), on_codes("Ignore", [Interrupted.exit_code])]


def stage_command(config: RunConfig, stage: StageId, key: str, job: str) -> list[str]:
    """What a stage's container runs; a shard learns its index from JOB_COMPLETION_INDEX. Training on several GPUs goes by a launcher."""
    shards, pod, gpus = shards_of(config, stage), config.kubernetes.pod(stage.name), gpus_of(config, stage)
    which = ["--iteration", str(stage.iteration), "--key", key]
    module = ["-m", f"jobs.{stage.name}", "--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}", *which]
    if pod.nodes > 1:
        return ["python", "-m", "itool.train.launch", "torchrun", *_rendezvous(config, pod.nodes, gpus, job), *module]
    if gpus > 1 and stage.name in TRAINING_STAGES:
        plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # said here, or accelerate warns of each
        return ["python", "-m", "itool.train.launch", "accelerate", "--multi_gpu", "--num_processes", str(gpus), *plain, *module]
    return ["python", *module, *(["--shards", str(shards)] if shards > 1 else [])]


def _rendezvous(config: RunConfig, nodes: int, gpus: int, job: str) -> list[str]:
    """torchrun's arguments: pod 0 is the meeting point and has rank 0; a worker that ends is not started again inside its pod."""
    meeting_point = f"{job}-0.{workers_name(config.run)}"
    return [
        *("--nnodes", str(nodes), "--nproc-per-node", str(max(1, gpus)), "--node-rank", "$(JOB_COMPLETION_INDEX)"),
        *("--master-addr", meeting_point, "--master-port", str(RENDEZVOUS_PORT), "--max-restarts", "0"),
    ]


def workers_service(config: RunConfig, owner: Object) -> Object:
    """The headless Service of trainings that span nodes: a name for every pod, also before it is ready."""
    metadata = {"name": workers_name(config.run), "labels": labels(config, "stage"), "ownerReferences": [owner_reference(owner)]}
    selector = {RUN_LABEL: config.run, COMPONENT_LABEL: "stage"}
    ports = [{"name": "rendezvous", "port": RENDEZVOUS_PORT}]
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
