"""The only place that speaks to Kubernetes: plain dicts in, plain dicts out, every call bounded in time, every refusal explained.

The `kubernetes` package finds the cluster and the credentials (kubeconfig with its plugins, or the pod's service account); the requests
themselves are JSON over its connection pool, since its models differ from version to version.

Answers keep their meaning: 401 reads the credentials again, once; 409 on create means that the object exists; 410 on a watch means "list
again"; 429, 5xx and no answer are tried again and then ClusterDown (69), and so are 401 and 403 of what was accepted before; a first 403
and other refusals are settings that no retry cures (64; `preflight.require` waits for the rights of a pod that has just started).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from http import HTTPStatus
from pathlib import Path

import urllib3
import yaml

from itool.cluster.api_answers import ClusterDown, Gone, Refused, watch_error
from itool.cluster.api_transport import READ_SECONDS, Connect, Connection, Transport
from itool.cluster.objects import Object
from itool.errors import ConfigError, ItoolError
from itool.logs import get_logger

log = get_logger(__name__)

ATTEMPTS = 4
WATCH_SECONDS = 30
LOG_SECONDS = 60.0
PAGE_OBJECTS = 500
CONNECTIONS = 40
TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

GROUPS = {
    "configmaps": "/api/v1",
    "events": "/api/v1",
    "pods": "/api/v1",
    "services": "/api/v1",
    "jobs": "/apis/batch/v1",
    "deployments": "/apis/apps/v1",
}
"""Where each resource lives. Nothing else is ever touched."""

PERMISSIONS: dict[str, tuple[str, ...]] = {
    "batch/jobs": ("create", "delete", "list", "patch", "watch"),
    "configmaps": ("create", "get", "patch"),
    "events": ("create", "list"),
    "pods": ("list", "watch"),
    "pods/log": ("get",),
    "services": ("create", "list", "watch"),
    "apps/deployments": ("create", "get", "patch"),
}
"""What a controller must be allowed, by resource: checked by `doctor`, granted by the chart's Role, and no more than is used."""

QUEUE_PERMISSIONS: dict[str, tuple[str, ...]] = {"kueue.x-k8s.io/localqueues": ("get",)}
"""What the chart's Role grants besides where a queue is set, so that a name that is not there is refused: Kueue itself would wait for ever.
An account that lacks it works nevertheless.
"""


class Cluster:
    """One namespace of a cluster. Thread safe. `connect` gives a connection and is asked again, for the same context, after a 401."""

    def __init__(
        self,
        connect: Connect,
        namespace: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._transport = Transport(connect, attempts, sleep, read_seconds)
        self.namespace = namespace or self._transport.connection.namespace

    @property
    def calls(self) -> int:
        """How many requests were made."""
        return self._transport.calls

    def get(self, resource: str, name: str) -> Object | None:
        """One object; None when there is none of that name."""
        return self._call("GET", "get", resource, name, absent=True)

    def list(
        self, resource: str, labels: str = "", fields: str = "", *, trim: Callable[[Object], Object] = lambda item: item
    ) -> tuple[list[Object], str]:
        """Every object that fits the selectors, and the version to watch from. Long lists come in pages, or whole if these get too old.

        `trim` keeps of each what is needed, page by page: thousands of whole pods would fill a controller's memory.
        """
        items: list[Object] = []
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query = {**selectors, "limit": str(PAGE_OBJECTS)}
        while True:
            try:
                page = self._call("GET", "list", resource, query=query) or {}
            except Gone as error:
                if not {"limit", "continue"} <= query.keys():
                    raise ClusterDown(f"Kubernetes does not list {resource}: {error}") from None
                items, query = [], selectors
                continue
            items += map(trim, page.get("items") or [])
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            query = {**query, "continue": metadata["continue"]}

    def watch(self, resource: str, version: str, labels: str = "", fields: str = "") -> Iterator[tuple[str, Object]]:
        """Changes after `version` (ADDED, MODIFIED, DELETED, BOOKMARK) until the server or a time-out ends it. Raises Gone."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": version,
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        try:
            response = self._open("watch", resource, query=query, read_seconds=WATCH_SECONDS + 5.0)
        except Refused as error:
            raise ClusterDown(f"Kubernetes does not watch {resource}: {error}") from None
        try:
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise watch_error(event["object"])
                yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, ValueError) as error:  # cut off, silent for too long, or half a line
            log.debug("watch ended", resource=resource, reason=str(error))
        finally:
            response.close()

    def create(self, resource: str, body: Object, *, dry_run: bool = False) -> Object | None:
        """Create an object; None when one of that name exists already."""
        query = {"dryRun": "All"} if dry_run else {}
        return self._call("POST", "create", resource, query=query, body=body, exists=True)

    def patch(self, resource: str, name: str, change: Object) -> Object | None:
        """Merge a change into an object; None when there is none of that name."""
        return self._call("PATCH", "patch", resource, name, body=change, absent=True)

    def delete(self, resource: str, name: str) -> bool:
        """Delete an object and, in the background, what it owns; False when there was none."""
        return self._call("DELETE", "delete", resource, name, body={"propagationPolicy": "Background"}, absent=True) is not None

    def pod_log(
        self, name: str, container: str, *, follow: bool = False, since: str = "", tail_lines: int | None = None, timestamps: bool = False
    ) -> Iterator[bytes]:
        """Chunks of a container's log, with `follow` until the container ends. Nothing when the pod is gone or has not started.

        Raises ClusterDown when the stream is cut off, or when nothing has come for LOG_SECONDS, without `follow` for as long as of any
        other answer.
        """
        query = {
            "container": container,
            "follow": "true" if follow else "",
            "sinceTime": since,
            "tailLines": "" if tail_lines is None else str(tail_lines),
            "timestamps": "true" if timestamps else "",
        }
        try:
            response = self._open("get", "pods", name, "log", query=query, read_seconds=LOG_SECONDS if follow else None)
        except Refused as error:
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
                return
            raise
        try:
            yield from response.stream(65536, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise ClusterDown(f"the log of pod {name} was cut off: {type(error).__name__}: {error}") from None
        finally:
            response.close()

    def version(self) -> tuple[int, int]:
        """The API server's version, as (1, 34)."""
        answer = self._ask("GET", "/version", "get /version")
        return int(answer["major"]), int("".join(char for char in answer["minor"] if char.isdigit()))

    def may(self, verb: str, resource: str) -> bool:
        """Whether our credentials allow a verb on a resource, as PERMISSIONS names it."""
        group, _, rest = resource.rpartition("/") if resource.startswith(("batch/", "apps/")) else ("", "", resource)
        name, _, subresource = rest.partition("/")
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        allowed = bool(self._ask("POST", path, "create selfsubjectaccessreviews", review)["status"].get("allowed"))
        if allowed:
            self._transport.granted.add(f"{verb} {rest}")
        return allowed

    def look(self, path: str) -> tuple[HTTPStatus, Object]:
        """Whether something beyond our own resources is there, by API path: (OK, it), (NOT_FOUND, {}), or (FORBIDDEN, {}) to ask."""
        try:
            response = self._transport.request("GET", path, {}, None)
        except Refused as error:
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
                return HTTPStatus(error.status), {}
            raise self._explained(error, f"get {path}") from None
        return HTTPStatus.OK, self._parsed(response, f"get {path}")

    def _ask(self, method: str, path: str, what: str, body: Object | None = None) -> Object:
        """A call beyond our own resources, where every refusal is an error."""
        try:
            response = self._transport.request(method, path, {}, body)
        except Refused as error:
            raise self._explained(error, what) from None
        return self._parsed(response, what)

    def _call(
        self,
        method: str,
        verb: str,
        resource: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        absent: bool = False,
        exists: bool = False,
    ) -> Object | None:
        """A call whose answer is one document. None where `absent` or `exists` says that 404 or "AlreadyExists" is an answer."""
        try:
            response = self._transport.request(method, self._path(resource, name), query or {}, body, right=f"{verb} {resource}")
        except Refused as error:
            if absent and error.status == HTTPStatus.NOT_FOUND:
                return None
            if exists and error.reason == "AlreadyExists":
                return None
            if error.status == HTTPStatus.GONE:
                raise Gone(error.message) from None
            name = name or str((body or {}).get("metadata", {}).get("name", ""))
            raise self._explained(error, f"{verb} {resource} {name}".strip()) from None
        return self._parsed(response, f"{verb} {resource}")

    def _parsed(self, response: urllib3.BaseHTTPResponse, what: str) -> Object:
        """The document that an answer is. Raises ClusterDown where it is another page than the API server's."""
        try:
            document = json.loads(response.data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            host = self._transport.connection.host
            raise ClusterDown(f"what answers at {host} to {what} is no JSON object; is there a proxy before the API server?")
        return document

    def _open(
        self, verb: str, resource: str, name: str = "", subresource: str = "", *, query: Mapping[str, str], read_seconds: float | None
    ) -> urllib3.BaseHTTPResponse:
        """A GET whose answer is read piece by piece."""
        path = self._path(resource, name) + (f"/{subresource}" if subresource else "")
        right = f"{verb} {resource}{f'/{subresource}' if subresource else ''}"
        try:
            return self._transport.request("GET", path, query, None, right=right, stream=True, read_seconds=read_seconds)
        except Refused as error:
            if error.status == HTTPStatus.GONE:
                raise Gone(error.message) from None
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
                raise
            raise self._explained(error, f"{right} {name}".strip()) from None

    def _path(self, resource: str, name: str) -> str:
        path = f"{GROUPS[resource]}/namespaces/{self.namespace}/{resource}"
        return f"{path}/{name}" if name else path

    def _explained(self, error: Refused, what: str) -> ItoolError:
        return error.explained(what, host=self._transport.connection.host, namespace=self.namespace)


def open_cluster(namespace: str | None = None, *, hurried: bool = False) -> Cluster:
    """The cluster that KUBECONFIG, the pod's service account or ~/.kube/config names. Raises ConfigError when there is none.

    `hurried`: for a person who waits; an API server that hangs is given up within 11 seconds.
    """
    return Cluster(connect, namespace, attempts=2, read_seconds=5.0) if hurried else Cluster(connect, namespace)


def connect(context: str | None = None) -> Connection:
    """Find cluster and credentials: an explicit KUBECONFIG first, then the pod's own service account, then the default kubeconfig.

    Of a kubeconfig its current context, or the one that is named: whoever connects again stays with the cluster that he began with.
    """
    import kubernetes  # noqa: PLC0415 - half a second, and only this backend needs it

    configuration = kubernetes.client.Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    try:
        if in_cluster():
            kubernetes.config.load_incluster_config(client_configuration=configuration)
            namespace = (TOKEN_FOLDER / "namespace").read_text(encoding="utf-8").strip()
        else:
            contexts, current = kubernetes.config.list_kube_config_contexts()
            chosen = next((found for found in contexts if found["name"] == context), current)
            context = chosen["name"] if context is None else context
            kubernetes.config.load_kube_config(client_configuration=configuration, context=context)
            namespace = chosen["context"].get("namespace") or "default"
    except (kubernetes.config.ConfigException, OSError, ValueError) as error:
        raise _unconfigured(str(error)) from None
    except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        file = kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION
        raise _unconfigured(f"{file} is no kubeconfig: {type(error).__name__}: {error}") from None
    pool: urllib3.PoolManager = kubernetes.client.ApiClient(configuration).rest_client.pool_manager

    def headers() -> dict[str, str]:
        settings = configuration.auth_settings().values()
        return {setting["key"]: setting["value"] for setting in settings if setting["in"] == "header" and setting["value"]}

    return Connection(configuration.host, pool, headers, namespace, context)


def quantity(text: str) -> Decimal:
    """An amount as Kubernetes writes it, like `500m` or `2Gi`, as a number."""
    from kubernetes.utils.quantity import parse_quantity  # noqa: PLC0415 - as above

    return Decimal(parse_quantity(text))


def in_cluster() -> bool:
    """Whether this is a pod that speaks for its own service account."""
    return "KUBECONFIG" not in os.environ and (TOKEN_FOLDER / "token").exists()


def _unconfigured(what: str) -> ConfigError:
    return ConfigError(
        f"no Kubernetes cluster is configured: {' '.join(what.split())}", remedy="Set KUBECONFIG, or use runtime.backend local"
    )


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Whole lines of a streamed answer, as they come."""
    rest = b""
    for chunk in response.stream(None, decode_content=True):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
