"""One request to the API server: bounded in time, tried again while the server is in trouble, with credentials read again after a 401."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import urllib3

from itool.cluster.api_answers import LONGEST_PAUSE_SECONDS, ClusterDown, Refused, refusal_of, retry_after_seconds
from itool.errors import ConfigError

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
"""How long an answer may keep us waiting. A call with all its attempts may take a minute or more, longer than the lease has left: a
controller that was that late learns at its next renewal whether it was replaced."""
FIRST_PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Connection:
    """An API server and how to speak to it. `headers` is asked before every request, since tokens expire.

    `context` is the kubeconfig's that names it; None in a pod.
    """

    host: str
    pool: urllib3.PoolManager
    headers: Callable[[], dict[str, str]]
    namespace: str
    context: str | None = None


Connect = Callable[[str | None], Connection]
"""Gives the connection of a kubeconfig's context; None: of its current one, or of the pod."""


class Transport:
    """A connection that lasts. Thread safe. `connect` gives one and is asked again, for the same context, after a 401.

    `granted` holds the rights (`create jobs`) that the server has accepted once. An API server that has just started answers for some
    seconds, before it knows everybody's rights, with 403; so a right that was there before is waited for, as the server itself is.
    """

    def __init__(self, connect: Connect, attempts: int, sleep: Callable[[float], None], read_seconds: float = READ_SECONDS) -> None:
        self._connect = connect
        self._attempts = attempts
        self._read_seconds = read_seconds
        self._sleep = sleep
        self._lock = threading.Lock()
        self._accepted = False
        self.granted: set[str] = set()
        self.connection = connect(None)
        self.calls = 0

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: dict[str, Any] | None,
        *,
        right: str = "",
        stream: bool = False,
        read_seconds: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Ask, and ask again while the server is in trouble. `right` is the verb and the resource, of our own resources. Raises Refused or
        ClusterDown.
        """
        reason, rebuilt, read_seconds = "does not answer", False, read_seconds or self._read_seconds
        for attempt in range(self._attempts):
            connection = self.connection
            try:
                response = self._send(connection, method, path, query, body, stream=stream, read_seconds=read_seconds)
            except urllib3.exceptions.HTTPError as error:
                reason, pause = f"does not answer: {type(error).__name__}: {error}", None
                if stream and isinstance(error, urllib3.exceptions.ReadTimeoutError):
                    break  # whoever reads a stream asks again by itself, from where it stands
            else:
                if response.status < HTTPStatus.BAD_REQUEST:
                    self._accepted = True
                    if right:
                        self.granted.add(right)
                    return response
                refusal = refusal_of(response)
                if refusal.status == HTTPStatus.UNAUTHORIZED and not rebuilt:
                    rebuilt = True
                    self._reconnect(connection)
                    continue
                if not self._may_pass(refusal, right):
                    raise refusal
                does = f"does not allow to {right} any more" if refusal.is_denied else "does not answer"
                reason, pause = f"{does}: {refusal.status} {refusal.message}", retry_after_seconds(response)
            if attempt + 1 < self._attempts:
                self._sleep(pause or min(FIRST_PAUSE_SECONDS * 2.0**attempt, LONGEST_PAUSE_SECONDS))
        raise ClusterDown(f"the Kubernetes API at {self.connection.host} {reason}", remedy="Check the cluster, then run again")

    def _may_pass(self, refusal: Refused, right: str) -> bool:
        """Whether the same call may be accepted later: the server is in trouble, or refuses what it has accepted before."""
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            return self._accepted
        return right in self.granted if refusal.is_denied else refusal.is_worth_a_retry

    def _send(
        self,
        connection: Connection,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: dict[str, Any] | None,
        *,
        stream: bool,
        read_seconds: float,
    ) -> urllib3.BaseHTTPResponse:
        self.calls += 1
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        asked = urlencode({key: value for key, value in query.items() if value})
        return connection.pool.request(
            method,
            f"{connection.host}{path}{'?' + asked if asked else ''}",
            body=None if body is None else json.dumps(body).encode(),
            headers={**connection.headers(), "Accept": "application/json", "Content-Type": kind},
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
            preload_content=not stream,
            retries=False,
            redirect=False,
        )

    def _reconnect(self, refused: Connection) -> None:
        """Read the credentials again, unless another thread has done so since. A kubeconfig that is just being written is read later."""
        with self._lock:
            if self.connection is refused:
                try:
                    self.connection = self._connect(refused.context)
                except ConfigError:
                    if not self._accepted:
                        raise
