"""What the API server's answers mean when they are no success: a dependency that is down or full, a list that is too old, or a setting."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import urllib3

from itool.errors import ConfigError, DependencyError, ItoolError

LONGEST_PAUSE_SECONDS = 8.0


class ClusterDown(DependencyError):  # noqa: N818 - says what is the case, like the errors around it
    """The API server does not answer."""


class Denied(ConfigError):  # noqa: N818 - as above
    """These credentials lack a right."""


class OverQuota(DependencyError):  # noqa: N818 - as above
    """A quota of the namespace has no room now: others, or Jobs of this run that are over, use it up."""


class Gone(ItoolError):  # noqa: N818 - the name of the answer
    """The version to watch from is too old: list again."""


class Refused(Exception):  # noqa: N818 - says what happened, and never leaves the client
    """An answer that is not a success."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message

    @property
    def is_worth_a_retry(self) -> bool:
        """Throttled, in trouble, or in conflict with another writer (a quota's counter, for instance)."""
        if self.status == HTTPStatus.CONFLICT:
            return self.reason != "AlreadyExists"
        return self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def is_denied(self) -> bool:
        """These credentials lack the right (a quota or an admission policy also answers 403, and names no user)."""
        return self.status == HTTPStatus.FORBIDDEN and re.search(r'User ".*" cannot ', self.message) is not None

    def explained(self, what: str, *, host: str, namespace: str) -> ItoolError:
        """What it means for whoever runs this; `what` is verb and resource, as in `create jobs demo`."""
        if self.status == HTTPStatus.UNAUTHORIZED:
            return ConfigError(f"the Kubernetes API at {host} refuses the credentials", remedy="Log in again, or check KUBECONFIG")
        if self.is_denied:
            text = f"not allowed to {what} in namespace {namespace}: {self.message}"
            return Denied(text, remedy="Use the chart's Role, or ask for these rights; `itoolctl doctor` lists what is missing")
        if self.status == HTTPStatus.NOT_FOUND and "namespaces" in self.message:
            return ConfigError(f"namespace {namespace} does not exist", remedy="Create it, or set kubernetes.namespace")
        text = f"Kubernetes refuses to {what} in namespace {namespace}: {self.message}"
        if self.status == HTTPStatus.FORBIDDEN and "exceeded quota: " in self.message:
            return OverQuota(text, remedy="Let others end, or raise the quota")
        return ConfigError(text)


def refusal_of(response: urllib3.BaseHTTPResponse) -> Refused:
    """What an answer that is no success says, also where its body is no Status (a proxy's page, for instance)."""
    try:
        status = json.loads(response.data)
        return Refused(response.status, str(status.get("reason", "")), " ".join(str(status.get("message", "")).split()))
    except (ValueError, AttributeError, urllib3.exceptions.HTTPError):
        return Refused(response.status, "", HTTPStatus(response.status).phrase if response.status in list(HTTPStatus) else "")


def retry_after_seconds(response: urllib3.BaseHTTPResponse) -> float | None:
    """How long the API server asks to be left alone, at most LONGEST_PAUSE_SECONDS; None where it does not say."""
    given = response.headers.get("Retry-After", "")
    return min(float(given), LONGEST_PAUSE_SECONDS) if given.isdigit() else None


def watch_error(status: dict[str, Any]) -> ItoolError:
    """What an ERROR event of a watch means: Gone when its version is too old, else ClusterDown."""
    if status.get("code") == HTTPStatus.GONE:
        return Gone(str(status.get("message", "")))
    return ClusterDown(f"the watch ended: {status.get('message', status)}")
