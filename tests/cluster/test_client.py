"""The client against a real HTTP server that answers as an API server in all its moods."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3

from itool.cluster import client
from itool.cluster.api_answers import ClusterDown, Denied, Gone, OverQuota
from itool.cluster.api_transport import Connection
from itool.cluster.client import PERMISSIONS, Cluster, connect
from itool.errors import ConfigError

POD = {"metadata": {"name": "a", "resourceVersion": "7"}}


def status(code: int, reason: str = "", message: str = "") -> tuple[int, Any]:
    return code, {"kind": "Status", "code": code, "reason": reason, "message": message}


@dataclass
class Server:
    """Answers requests one after the other: (code, document), (code, document, headers), bytes (a stream), or "hang"."""

    answers: list[Any] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=lambda: ["first"])
    sleeps: list[float] = field(default_factory=list)
    port: int = 0
    release: threading.Event = field(default_factory=threading.Event)

    def cluster(self, **more: Any) -> Cluster:
        return Cluster(self.connect, sleep=self.sleeps.append, **more)

    def connect(self, _context: str | None = None) -> Connection:
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        return Connection(f"http://127.0.0.1:{self.port}", urllib3.PoolManager(), lambda: {"authorization": f"Bearer {token}"}, "here")

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        split = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        self.requests.append((handler.command, split.path, query, handler.headers["authorization"], body))
        answer = self.answers.pop(0)
        if answer == "hang after headers":
            handler.send_response(200)
            handler.end_headers()
        if answer in ("hang", "hang after headers"):
            self.release.wait(20)
            return
        if isinstance(answer, bytes):
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(answer)
            return
        code, document, *headers = answer
        data = json.dumps(document).encode()
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers[0] if headers else {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return lambda: made.answer(self)
            raise AttributeError(name)

        def log_message(self, *_: Any) -> None:
            """Silence."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    made.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.release.set()
    http.shutdown()
    http.server_close()


def test_calls_go_to_the_namespace_with_the_token(server: Server) -> None:
    server.answers = [(200, POD)]
    assert server.cluster().get("jobs", "a") == POD
    assert server.requests == [("GET", "/apis/batch/v1/namespaces/here/jobs/a", {}, "Bearer first", None)]


def test_long_lists_come_in_pages(server: Server) -> None:
    server.answers = [
        (200, {"items": [1, 2], "metadata": {"resourceVersion": "5", "continue": "more"}}),
        (200, {"items": [3], "metadata": {"resourceVersion": "5"}}),
    ]
    assert server.cluster().list("pods", "a=b", "status.phase!=Succeeded", trim=lambda item: {"of": item}) == (
        [{"of": 1}, {"of": 2}, {"of": 3}],
        "5",
    )
    assert server.requests[1][2] == {
        "labelSelector": "a=b",
        "fieldSelector": "status.phase!=Succeeded",
        "limit": "500",
        "continue": "more",
    }


HALF = (200, {"items": [1, 2], "metadata": {"resourceVersion": "5", "continue": "more"}})
TOO_OLD = status(410, "Expired", "continue parameter is too old")


def test_a_list_whose_pages_grow_too_old_is_read_in_one_piece(server: Server) -> None:
    server.answers = [HALF, TOO_OLD, (200, {"items": [3], "metadata": {"resourceVersion": "9"}})]
    assert server.cluster().list("pods", "a=b") == ([3], "9")
    assert server.requests[2][2] == {"labelSelector": "a=b"}


@pytest.mark.parametrize("answers", [[TOO_OLD], [HALF, TOO_OLD, TOO_OLD], [HALF, TOO_OLD, HALF, TOO_OLD]])
def test_a_list_that_is_too_old_again_and_again_is_given_up(server: Server, answers: list[Any]) -> None:
    server.answers = [*answers, (200, {"items": []})]
    with pytest.raises(ClusterDown, match="does not list pods: continue parameter is too old"):
        server.cluster().list("pods")


CALLS: dict[str, Callable[[Cluster], Any]] = {
    "list pods": lambda cluster: cluster.list("pods"),
    "get /version": Cluster.version,
    "create selfsubjectaccessreviews": lambda cluster: cluster.may("create", "batch/jobs"),
    "get /apis": lambda cluster: cluster.look("/apis"),
}


@pytest.mark.parametrize("answer", [b"<html>Sign in</html>", b'["sign", "in"]'])
@pytest.mark.parametrize("what", CALLS)
def test_a_page_of_a_proxy_is_no_answer(server: Server, what: str, answer: bytes) -> None:
    server.answers = [answer]
    with pytest.raises(ClusterDown, match=f"to {what} is no JSON object; is there a proxy"):
        CALLS[what](server.cluster())


@pytest.mark.parametrize("what", CALLS)
def test_credentials_that_never_worked_are_a_setting(server: Server, what: str) -> None:
    server.answers = [status(401, "Unauthorized"), status(401, "Unauthorized")]
    with pytest.raises(ConfigError, match="refuses the credentials"):
        CALLS[what](server.cluster())


@pytest.mark.parametrize("code", [403, 404])
def test_a_look_answers_what_is_missing_or_forbidden(server: Server, code: int) -> None:
    server.answers = [status(code), status(422, "Invalid", "odd"), (200, POD)]
    cluster = server.cluster()
    assert cluster.look("/apis/a") == (code, {})
    with pytest.raises(ConfigError, match="refuses to get /apis/a in namespace here: odd"):
        cluster.look("/apis/a")
    assert cluster.look("/apis/a") == (200, POD)


def test_an_expired_token_is_read_again_once(server: Server) -> None:
    server.tokens = ["old", "new"]
    server.answers = [status(401, "Unauthorized"), (200, POD)]
    assert server.cluster().get("pods", "a") == POD
    assert [request[3] for request in server.requests] == ["Bearer old", "Bearer new"]


def test_credentials_that_worked_before_are_waited_for(server: Server) -> None:
    server.answers = [(200, POD), *[status(401, "Unauthorized")] * 2, (200, POD)]
    cluster = server.cluster()
    cluster.get("pods", "a")
    assert cluster.get("pods", "a") == POD


def test_an_object_that_exists_is_an_answer(server: Server) -> None:
    server.answers = [status(409, "AlreadyExists", "jobs a already exists")]
    assert server.cluster().create("jobs", {"metadata": {"name": "a"}}) is None


def test_a_conflict_with_another_writer_is_tried_again(server: Server) -> None:
    server.answers = [status(409, "Conflict", "operation cannot be fulfilled on resourcequotas"), (201, POD)]
    assert server.cluster().create("jobs", {"metadata": {"name": "a"}}) == POD


def test_what_is_not_there_is_none(server: Server) -> None:
    server.answers = [status(404, "NotFound")] * 3
    cluster = server.cluster()
    assert (cluster.get("jobs", "a"), cluster.patch("jobs", "a", {}), cluster.delete("jobs", "a")) == (None, None, False)


def test_a_throttled_call_waits_as_long_as_it_is_told(server: Server) -> None:
    server.answers = [(429, {}, {"Retry-After": "3"}), (503, {}), (500, {}), (200, POD)]
    assert server.cluster().get("pods", "a") == POD
    assert server.sleeps == [3.0, 1.0, 2.0]


def test_a_pause_that_the_server_asks_for_does_not_outlast_the_lease(server: Server) -> None:
    server.answers = [(429, {}, {"Retry-After": "3600"}), (200, POD)]
    assert server.cluster().get("pods", "a") == POD
    assert server.sleeps == [8.0]


def test_a_server_in_trouble_is_given_up_after_a_while(server: Server) -> None:
    server.answers = [status(500, "InternalError", "etcd is sick")] * 4
    with pytest.raises(ClusterDown, match=r"does not answer: 500 etcd is sick") as caught:
        server.cluster().get("pods", "a")
    assert caught.value.exit_code == 69
    assert len(server.requests) == 4


def test_a_server_that_hangs_is_not_waited_for(server: Server) -> None:
    server.answers = ["hang", "hang"]
    cluster = server.cluster(attempts=2)
    with pytest.raises(ClusterDown, match="ReadTimeoutError"):
        cluster._transport.request("GET", "/version", {}, None, read_seconds=0.2)


def test_no_server_at_all_is_a_dependency_that_is_down(server: Server) -> None:
    server.port = 9  # discard: nobody listens
    with pytest.raises(ClusterDown, match="NewConnectionError"):
        server.cluster(attempts=1).get("pods", "a")


def test_a_missing_right_is_named_with_its_remedy(server: Server) -> None:
    server.answers = [status(403, "Forbidden", 'jobs.batch is forbidden: User "u" cannot create resource "jobs" in API group "batch"')]
    with pytest.raises(ConfigError, match=r"not allowed to create jobs a in namespace here: .*doctor"):
        server.cluster().create("jobs", {"metadata": {"name": "a"}})


def test_a_right_to_what_is_no_resource_is_told_from_other_settings(server: Server) -> None:
    server.answers = [status(403, "Forbidden", 'forbidden: User "u" cannot get path "/version"')]
    with pytest.raises(Denied, match="not allowed to get /version in namespace here"):
        server.cluster().version()


DENIED = status(
    403, "Forbidden", 'jobs.batch is forbidden: User "u" cannot list resource "jobs" in API group "batch" in the namespace "here"'
)
LISTED = (200, {"items": [], "metadata": {"resourceVersion": "5"}})


def test_a_right_that_was_there_is_waited_for_as_the_server_is(server: Server) -> None:
    server.answers = [LISTED, DENIED, DENIED, LISTED]
    cluster = server.cluster()
    cluster.list("jobs")
    assert cluster.list("jobs") == ([], "5")
    assert server.sleeps == [0.5, 1.0]


def test_a_right_that_an_access_review_has_confirmed_is_waited_for(server: Server) -> None:
    server.answers = [(201, {"status": {"allowed": True}}), DENIED, LISTED]
    cluster = server.cluster()
    assert cluster.may("list", "batch/jobs")
    assert cluster.list("jobs") == ([], "5")


def test_a_right_that_was_taken_away_is_a_dependency_that_names_it(server: Server) -> None:
    server.answers = [LISTED, *[DENIED] * 4]
    cluster = server.cluster()
    cluster.list("jobs")
    with pytest.raises(ClusterDown, match=r'does not allow to list jobs any more: 403 .*User "u" cannot list resource "jobs"'):
        cluster.list("jobs")


def test_a_watch_whose_right_was_there_is_waited_for(server: Server) -> None:
    server.answers = [b"", *[DENIED] * 4]
    cluster = server.cluster()
    assert list(cluster.watch("jobs", "1")) == []
    with pytest.raises(ClusterDown, match="does not allow to watch jobs any more"):
        list(cluster.watch("jobs", "1"))


def test_another_right_than_the_one_that_was_there_is_a_setting(server: Server) -> None:
    server.answers = [(200, POD), DENIED]
    cluster = server.cluster()
    cluster.get("jobs", "a")
    with pytest.raises(ConfigError, match="not allowed to list jobs in namespace here"):
        cluster.list("jobs")


@pytest.mark.parametrize(
    "rule",
    [
        'admission webhook "validation.gatekeeper.sh" denied the request: [gpus] container <stage> cannot ask for more than 2 GPUs',
        "jobs.batch b is forbidden: cannot set an ownerRef on a resource you can't delete: , <nil>",
    ],
)
def test_an_admission_rule_is_a_setting_whatever_was_accepted_before(server: Server, rule: str) -> None:
    server.answers = [(201, POD), status(403, "Forbidden", rule)]
    cluster = server.cluster()
    cluster.create("jobs", {"metadata": {"name": "a"}})
    with pytest.raises(ConfigError, match=f"refuses to create jobs b in namespace here: {re.escape(rule)}") as caught:
        cluster.create("jobs", {"metadata": {"name": "b"}})
    assert not isinstance(caught.value, Denied)


def test_a_refusal_that_is_no_right_says_what_the_server_says(server: Server) -> None:
    server.answers = [status(403, "Forbidden", "jobs.batch a is forbidden: exceeded quota: jobs"), status(422, "Invalid", "spec.x: bad")]
    with pytest.raises(OverQuota, match=r"refuses to create jobs a in namespace here: .*exceeded quota: jobs\. Let others end"):
        server.cluster().create("jobs", {"metadata": {"name": "a"}})
    with pytest.raises(ConfigError, match=r"spec\.x: bad"):
        server.cluster().create("jobs", {"metadata": {"name": "a"}})


def test_a_missing_namespace_is_named(server: Server) -> None:
    server.answers = [status(404, "NotFound", 'namespaces "here" not found')]
    with pytest.raises(ConfigError, match="namespace here does not exist"):
        server.cluster().create("jobs", {"metadata": {"name": "a"}})


def events(*documents: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def test_a_watch_gives_changes_until_the_server_ends_it(server: Server) -> None:
    server.answers = [events({"type": "ADDED", "object": POD}, {"type": "BOOKMARK", "object": POD})]
    assert list(server.cluster().watch("pods", "5", "a=b")) == [("ADDED", POD), ("BOOKMARK", POD)]
    assert server.requests[0][2]["resourceVersion"] == "5"


@pytest.mark.parametrize("answer", [status(410, "Expired"), events({"type": "ERROR", "object": {"code": 410, "message": "too old"}})])
def test_a_watch_from_too_long_ago_says_so(server: Server, answer: Any) -> None:
    server.answers = [answer]
    with pytest.raises(Gone):
        list(server.cluster().watch("pods", "5"))


@pytest.mark.parametrize("code", [400, 404])
def test_a_watch_that_is_refused_is_tried_again_later(server: Server, code: int) -> None:
    server.answers = [status(code, "", "the server could not find the requested resource")]
    with pytest.raises(ClusterDown, match="does not watch pods"):
        list(server.cluster().watch("pods", "5"))


def test_a_watch_that_is_cut_off_in_a_line_just_ends(server: Server) -> None:
    server.answers = [events({"type": "ADDED", "object": POD}) + b'{"type": "MODI']
    assert list(server.cluster().watch("pods", "5")) == [("ADDED", POD)]


def test_a_watch_that_hangs_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WATCH_SECONDS", -4.8)  # plus five seconds of patience
    server.answers = ["hang", "hang after headers"]
    with pytest.raises(ClusterDown):
        list(server.cluster().watch("pods", "5"))
    monkeypatch.setattr(client, "WATCH_SECONDS", -2.0)  # the headers must have come by then
    assert list(server.cluster().watch("pods", "5")) == []


def test_a_pods_log_is_read_and_none_is_no_error(server: Server) -> None:
    server.answers = [b"one\ntwo\n", status(404, "NotFound"), status(400, "BadRequest", "is waiting to start")]
    cluster = server.cluster()
    assert b"".join(cluster.pod_log("a", "stage", follow=True, since="2026-01-01T00:00:00Z", timestamps=True)) == b"one\ntwo\n"
    assert server.requests[0][2] == {
        "container": "stage",
        "follow": "true",
        "sinceTime": "2026-01-01T00:00:00Z",
        "timestamps": "true",
    }
    assert [list(cluster.pod_log("a", "stage")) for _ in range(2)] == [[], []]


def test_a_log_that_is_cut_off_says_so(server: Server) -> None:
    server.answers = [(200, "cut", {"Content-Length": "1000"})]
    with pytest.raises(ClusterDown, match="log of pod a was cut off"):
        list(server.cluster().pod_log("a", "stage"))


@pytest.mark.parametrize("answer", ["hang", "hang after headers"])
def test_a_log_that_is_not_followed_is_given_up_like_any_answer(server: Server, answer: str) -> None:
    """Before the server, which waits for 20 s, hangs up."""
    server.answers = [answer]
    with pytest.raises(ClusterDown, match="ReadTimeoutError"):
        list(server.cluster(attempts=1, read_seconds=0.2).pod_log("a", "stage", tail_lines=30))


def test_rights_are_asked_for_by_group_and_subresource(server: Server) -> None:
    server.answers = [(201, {"status": {"allowed": True}}), (201, {"status": {}})]
    cluster = server.cluster()
    assert (cluster.may("create", "batch/jobs"), cluster.may("get", "pods/log")) == (True, False)
    asked = [request[4]["spec"]["resourceAttributes"] for request in server.requests]
    assert [(one["group"], one["resource"], one["subresource"]) for one in asked] == [("batch", "jobs", ""), ("", "pods", "log")]


def test_permissions_speak_of_resources_that_the_client_knows() -> None:
    known = {f"{path.removeprefix('/apis/').split('/')[0]}/{name}" if "apis" in path else name for name, path in client.GROUPS.items()}
    assert {resource for resource in PERMISSIONS if resource != "pods/log"} <= known


def test_without_a_cluster_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path_factory.mktemp("none") / "config"))
    with pytest.raises(ConfigError, match=r"no Kubernetes cluster is configured: .*Set KUBECONFIG"):
        connect()


def kubeconfig(current: str, **servers: str) -> str:
    """A context and a cluster per name."""
    contexts = [{"name": name, "context": {"cluster": name, "user": "me", "namespace": f"at-{name}"}} for name in servers]
    clusters = [{"name": name, "cluster": {"server": server}} for name, server in servers.items()]
    document = {"current-context": current, "contexts": contexts, "clusters": clusters, "users": [{"name": "me", "user": {"token": "t"}}]}
    return json.dumps(document)


def test_after_an_expired_token_it_stays_with_its_cluster_though_a_person_has_switched_to_another(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    servers = {"first": f"http://127.0.0.1:{server.port}", "other": "http://127.0.0.1:1"}
    file = tmp_path / "config"
    file.write_text(kubeconfig("first", **servers))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))  # read when it is imported
    monkeypatch.setenv("KUBECONFIG", str(file))
    server.answers = [(200, POD), status(401, "Unauthorized"), (200, POD)]
    cluster = Cluster(connect, sleep=lambda _: None)
    cluster.get("pods", "a")
    file.write_text(kubeconfig("other", **servers))
    assert cluster.get("pods", "a") == POD
    assert {path for _, path, *_ in server.requests} == {"/api/v1/namespaces/at-first/pods/a"}


def test_a_kubeconfig_that_is_being_written_when_a_token_expires_is_read_again_later(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = kubeconfig("first", first=f"http://127.0.0.1:{server.port}")
    file = tmp_path / "config"
    file.write_text(whole)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.setenv("KUBECONFIG", str(file))
    server.answers = [(200, POD), *[status(401, "Unauthorized")] * 4, status(401, "Unauthorized"), (200, POD)]
    cluster = Cluster(connect, sleep=lambda _: None)
    cluster.get("pods", "a")
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(ClusterDown, match="401"):
        cluster.get("pods", "a")
    file.write_text(whole)
    assert cluster.get("pods", "a") == POD


ODD_KUBECONFIGS = {
    "broken YAML": "a: [\n",
    "text": "just text\n",
    "a list": "- apiVersion: v1\n",
    "a context that is a word": "current-context: x\ncontexts: [{name: x, context: here}]\nclusters: []\nusers: []\n",
    "a context without a cluster": "current-context: x\ncontexts: [{name: x}]\nclusters: []\nusers: []\n",
    "nothing": "",
}


@pytest.mark.parametrize("case", ODD_KUBECONFIGS)
def test_a_file_that_is_no_kubeconfig_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    file = tmp_path / "config"
    file.write_text(ODD_KUBECONFIGS[case])
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))  # read when it is imported
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(ConfigError, match=rf"^no Kubernetes cluster is configured: .*{file}.*Set KUBECONFIG") as caught:
        connect()
    assert "\n" not in str(caught.value)
