"""Is everything in the cluster that a run needs? One finding per check, with the setting, its value and a remedy; nothing is created.

`itoolctl doctor` (and with it `helm test`) prints them all; `itoolctl iterate` asks them before it creates anything and stops at the
first that is missing. What an account may not look at (a controller may not read Secrets) is left to the API server's dry run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from itool.cluster.api_answers import Denied, OverQuota
from itool.cluster.check import Check
from itool.cluster.client import PERMISSIONS, Cluster, quantity
from itool.cluster.manifests import stage_job
from itool.cluster.objects import Object
from itool.cluster.pods import owner_name, taken_name
from itool.cluster.serving_manifests import serving_deployment
from itool.cluster.wish import StoredArtifact
from itool.config import RunConfig
from itool.errors import ConfigError, DependencyError, ItoolError
from itool.logs import get_logger
from itool.stages import StageId, loop_stages, stage_names

log = get_logger(__name__)

OLDEST_VERSION = (1, 29)
"""Native sidecars, `backoffLimitPerIndex` and `podReplacementPolicy` are on by default from here on."""

SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
KUEUE = "kueue.x-k8s.io"
LOOK_AGAIN_SECONDS = 2.0
_RIGHTS = "permissions"
_UNSEEN = "cannot be looked at by this account"
_EXCEEDED = re.compile(r"exceeded quota: \S+, requested: (?P<requested>\S+), used: \S+, limited: (?P<limited>\S*[^\s.])")
"""How a quota refuses: it names the resources of which too much is asked for, as in `limited: pods=9,requests.nvidia.com/gpu=4`."""
NOBODY: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dry-run", "uid": "00000000-0000-0000-0000-000000000000"}}
"""Owner of what is never created."""


def require(
    cluster: Cluster,
    config: RunConfig,
    *,
    rights_within_seconds: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Raise the first thing that is missing, as ConfigError (64) or DependencyError (69).

    Rights may be missing for `rights_within_seconds`: an API server that has just started knows nobody's yet.
    """
    deadline, told = clock() + rights_within_seconds, False
    while (missing := next((check for check in cluster_checks(cluster, config) if check.state == "missing"), None)) is not None:
        error = DependencyError if missing.exit_code == DependencyError.exit_code else ConfigError
        if missing.name != _RIGHTS or error is DependencyError or clock() >= deadline:
            raise error(missing.finding, remedy=missing.remedy or None)
        if not told:
            told = True
            log.warning("waiting for rights", seconds=rights_within_seconds, reason=missing.line)
        sleep(LOOK_AGAIN_SECONDS)


def cluster_checks(cluster: Cluster, config: RunConfig) -> Iterator[Check]:
    """Every finding; the later ones are only asked when the cluster, the namespace and the rights are there."""
    for check in (_cluster, _namespace, _permissions):
        found = _explained(check, cluster, config)
        yield found
        if found.state == "missing":
            return
    for check in (_run_name, _credentials, _accounts, _priority, _queue, _dry_run):
        yield _explained(check, cluster, config)


def _explained(check: Callable[[Cluster, RunConfig], Check], cluster: Cluster, config: RunConfig) -> Check:
    """A check's finding; one that raises goes by the name of its function, one that may not ask by that of the rights."""
    try:
        return check(cluster, config)
    except Denied as error:
        return Check(_RIGHTS, "missing", str(error), exit_code=error.exit_code)
    except ItoolError as error:
        return Check(check.__name__.strip("_").replace("_", " "), "missing", str(error), exit_code=error.exit_code)


def _cluster(cluster: Cluster, _config: RunConfig) -> Check:
    version = cluster.version()
    text = "Kubernetes " + ".".join(str(part) for part in version)
    if version >= OLDEST_VERSION:
        return Check("cluster", "ok", text)
    oldest = ".".join(str(part) for part in OLDEST_VERSION)
    return _wrong(
        "cluster", f"{text} is too old: sidecar containers and retries per shard need {oldest}", f"Use a cluster of {oldest} or newer"
    )


def _namespace(cluster: Cluster, config: RunConfig) -> Check:
    namespace = cluster.namespace
    status, found = cluster.look(f"/api/v1/namespaces/{namespace}")
    if status == HTTPStatus.NOT_FOUND:
        key = "kubernetes.namespace" if config.kubernetes.namespace else "the kubeconfig's namespace"
        return _wrong(
            "namespace", f"{key} = {namespace!r} does not exist", f"Create it with `kubectl create namespace {namespace}`, or correct it"
        )
    if status == HTTPStatus.FORBIDDEN:
        return Check("namespace", "note", f"{namespace} {_UNSEEN}")
    enforced = found.get("metadata", {}).get("labels", {}).get("pod-security.kubernetes.io/enforce")
    return Check("namespace", "ok", f"{namespace}{f', Pod Security {enforced}' if enforced else ''}")


def _permissions(cluster: Cluster, _config: RunConfig) -> Check:
    asked = [(verb, resource) for resource, verbs in PERMISSIONS.items() for verb in verbs]
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda pair: cluster.may(*pair), asked))
    denied = [f"{verb} {resource}" for (verb, resource), may in zip(asked, allowed, strict=True) if not may]
    if not denied:
        return Check(_RIGHTS, "ok", f"all {len(asked)} that a controller uses in namespace {cluster.namespace}")
    text = f"not allowed in namespace {cluster.namespace}: {', '.join(denied)}"
    return _wrong(_RIGHTS, text, "Bind the chart's Role to this account (docs/security.md lists it), or use another kubeconfig")


def _run_name(cluster: Cluster, config: RunConfig) -> Check:
    status, owner = cluster.look(f"/api/v1/namespaces/{cluster.namespace}/configmaps/{owner_name(config.run)}")
    taken = taken_name(owner, config) if status == HTTPStatus.OK else None
    return _wrong("run name", *taken) if taken else _seen("run name", config.run, [status])


def _credentials(cluster: Cluster, config: RunConfig) -> Check:
    name = config.kubernetes.credentials_secret
    if name is None:
        return Check("credentials", "ok", "no Secret named: pods use workload identity")
    status, secret = cluster.look(f"/api/v1/namespaces/{cluster.namespace}/secrets/{name}")
    setting = f"kubernetes.credentials_secret = {name!r}"
    if status == HTTPStatus.FORBIDDEN:
        return Check("credentials", "note", f"{setting} {_UNSEEN}; `itoolctl status` shows when it is missing")
    if status == HTTPStatus.NOT_FOUND:
        remedy = secret_remedy(name, "--namespace", cluster.namespace)
        return _wrong("credentials", f"{setting} does not exist in namespace {cluster.namespace}", remedy)
    lacking = [key for key in SECRET_KEYS if key not in (secret.get("data") or {})]
    if lacking:
        return _wrong("credentials", f"{setting} has no key {', '.join(lacking)}", "Add it, or name another Secret")
    return Check("credentials", "ok", f"Secret {name}")


def secret_remedy(name: str, *options: str) -> str:
    """The command that creates a Secret with the store's keys."""
    words = [name, *options, *(f"--from-literal={key}=..." for key in SECRET_KEYS)]
    return f"Create it with `kubectl create secret generic {' '.join(words)}`"


def _accounts(cluster: Cluster, config: RunConfig) -> Check:
    wanted = {"job_service_account": config.kubernetes.job_service_account}
    if config.has_managed_serving:
        wanted["serving_service_account"] = config.kubernetes.serving_service_account
    found = {key: cluster.look(f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{name}")[0] for key, name in wanted.items()}
    for key, name in wanted.items():
        if found[key] == HTTPStatus.NOT_FOUND:
            text = f"kubernetes.{key} = {name!r} does not exist in namespace {cluster.namespace}"
            return _wrong("accounts", text, f"Create it with `kubectl create serviceaccount {name}`, or correct it")
    return _seen("accounts", ", ".join(dict.fromkeys(wanted.values())), found.values())


def _priority(cluster: Cluster, config: RunConfig) -> Check:
    pods = {"pods": config.kubernetes.pods, "serving": config.kubernetes.serving}
    pods |= {f"stages.{name}": pod for name, pod in config.kubernetes.stages.items()}
    named = {f"kubernetes.{key}.priority_class": pod.priority_class for key, pod in pods.items() if pod.priority_class}
    found = {key: cluster.look(f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}")[0] for key, name in named.items()}
    for key, name in named.items():
        if found[key] == HTTPStatus.NOT_FOUND:
            return _wrong("priority", f"{key} = {name!r} does not exist", "See `kubectl get priorityclasses`, or leave the setting out")
    return _seen("priority", ", ".join(dict.fromkeys(named.values())) or "the cluster's default", found.values())


def _queue(cluster: Cluster, config: RunConfig) -> Check:
    name = config.kubernetes.queue
    if name is None:
        return Check("queue", "ok", "none: Jobs go to the scheduler at once")
    setting = f"kubernetes.queue = {name!r}"
    status, group = cluster.look(f"/apis/{KUEUE}")
    if status == HTTPStatus.NOT_FOUND:
        return _wrong(
            "queue", f"{setting} needs Kueue, which is not installed: no API {KUEUE}", "Install Kueue, or leave kubernetes.queue out"
        )
    version = group.get("preferredVersion", {}).get("version", "v1beta1")
    status, _ = cluster.look(f"/apis/{KUEUE}/{version}/namespaces/{cluster.namespace}/localqueues/{name}")
    if status == HTTPStatus.NOT_FOUND:
        text = f"{setting} does not exist in namespace {cluster.namespace}"
        return _wrong("queue", text, "See `kubectl get localqueues`, or leave kubernetes.queue out")
    return _seen("queue", f"Kueue's local queue {name}", [status])


def _dry_run(cluster: Cluster, config: RunConfig) -> Check:
    """Let the API server say what it would not accept: quotas, admission policies, Pod Security, ill-formed volumes or affinities.

    A quota that is used up now is no error: what uses it may be the run's own stage, and a Job waits for it.
    """
    objects = list(dry_run_objects(config, cluster.namespace))
    pods_too, waits = cluster.may("create", "pods"), ""
    pods = [(f"a pod of {label}", "pods", _pod_of(body)) for label, _, body in objects] if pods_too else []
    for label, resource, body in [*objects, *pods]:
        try:
            full = _full_quota(cluster, resource, body)
        except DependencyError:
            raise
        except ItoolError as error:
            return _wrong("dry run", f"{label}: {error}", "Correct the kubernetes section, or ask who set this rule")
        if full:
            waits = waits or f"{label} would have to wait: {full}"
    if waits:
        return Check("dry run", "note", waits, "Let others end, or raise the quota; nothing, where the run itself uses it")
    names = ", ".join(label for label, _, _ in objects)
    return Check("dry run", "ok", f"accepted {'with their pods' if pods_too else '(pods not tried, this account creates none)'}: {names}")


def _full_quota(cluster: Cluster, resource: str, body: Object) -> str:
    """Which quota has no room for an object now, "" for none. Raises ConfigError for one that never fits, or is refused otherwise."""
    try:
        cluster.create(resource, body, dry_run=True)
    except OverQuota as error:
        found = _EXCEEDED.search(str(error))
        if found is None:
            raise
        requested, limited = _amounts(found["requested"]), _amounts(found["limited"])
        if any(quantity(amount) > quantity(limited[name]) for name, amount in requested.items()):
            raise ConfigError(f"never fits: {found[0]}") from None
        return found[0]
    return ""


def _amounts(text: str) -> dict[str, str]:
    """`pods=9,requests.nvidia.com/gpu=4` by resource."""
    return dict(amount.split("=", 1) for amount in text.split(","))


def dry_run_objects(config: RunConfig, namespace: str) -> Iterator[tuple[str, str, Object]]:
    """What a run creates: a Job of every stage, and vLLM's Deployment. Label, resource, object."""
    for name in stage_names(config.method):
        stage = StageId(int(name in loop_stages(config.method)), name)
        yield name, "jobs", stage_job(config, stage, "0" * 16, 0, config_map="dry-run", owner=NOBODY)
    if config.has_managed_serving:
        model = StoredArtifact(prefix="dry-run", digest="0" * 64)
        yield "vllm", "deployments", serving_deployment(config, model, config.model.context_tokens, namespace=namespace, owner=NOBODY)


def _pod_of(body: dict[str, Any]) -> Object:
    """The pod that a Job or Deployment would make."""
    template = body["spec"]["template"]
    metadata = {"name": f"{body['metadata']['name']}-dry-run", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _seen(name: str, finding: str, looks: Iterable[HTTPStatus]) -> Check:
    """What is there, or what may be there but could not be looked at."""
    unseen = HTTPStatus.FORBIDDEN in looks
    return Check(name, "note" if unseen else "ok", f"{finding} {_UNSEEN}" if unseen else finding)


def _wrong(name: str, finding: str, remedy: str) -> Check:
    return Check(name, "missing", finding, remedy, ConfigError.exit_code)
