"""Artifacts in S3 or a compatible store, through boto3. The only module that imports it.

Errors keep their meaning: wrong credentials, a missing bucket or a refused request are settings (ConfigError, no retry helps); an
endpoint that does not answer, throttling, 409 and 5xx are a dependency that is down (DependencyError) after botocore's bounded retries, and
so is the service that gives a pod its credentials.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import tenacity
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own class; it is the root of "the endpoint does not answer"
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError  # type: ignore[import-untyped]

from itool.artifacts.disk import TEMPORARY_SUFFIX, storage_error
from itool.config import ENDPOINT_VARIABLES, StoreConfig
from itool.errors import ArtifactError, ConfigError, DependencyError, ItoolError

MULTIPART_BYTES = 64 << 20
PART_BYTES = 16 << 20
ATTEMPTS = 4
CONNECT_SECONDS = 5
READ_SECONDS = 60
ABANDONED_SECONDS = 3600
"""A download writes all the time, or ends."""

_MISSING = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {
    "InvalidAccessKeyId",
    "XAdminUserNotFound",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "403",
    "ExpiredToken",
    "InvalidToken",
}
_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestLimitExceeded", "TooManyRequests"}
_DOWN = (ConnectionError, HTTPClientError, ReadTimeoutError, ResponseStreamingError, IncompleteReadError, RetriesExceededError)


class _ConflictError(DependencyError):
    """409: another write to the same key was under way."""


class S3Store:
    """Objects below `s3://bucket/prefix`. Thread safe, as boto3's client is."""

    def __init__(self, root: str, config: StoreConfig, *, attempts: int = ATTEMPTS, read_seconds: float = READ_SECONDS) -> None:
        bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            raise ConfigError(f"root = {root!r} names no bucket", remedy="Use s3://bucket/prefix")
        self.root = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        named = (os.environ.get(name) for name in ENDPOINT_VARIABLES)
        self._endpoint = config.endpoint_url or next(filter(None, named), "AWS")
        if "@" in self._endpoint:  # every message about this store would name it
            raise ConfigError(
                "the S3 endpoint in AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL holds a user or a password",
                remedy="Give these in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        self._attempts = attempts
        with self._explained("connect"):
            self._client = _client(config, attempts, read_seconds)
        self._transfer = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=min(8, config.max_connections)
        )

    def size(self, key: str) -> int | None:
        try:
            with self._explained(key):
                return int(self._client.head_object(**self._object(key))["ContentLength"])
        except _MissingObjectError:
            return None

    def read(self, key: str) -> bytes:
        with self._explained(key):
            data: bytes = self._client.get_object(**self._object(key))["Body"].read()
            return data

    def write(self, key: str, data: bytes) -> None:
        with self._explained(key):
            self._client.put_object(**self._object(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:
        retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_ConflictError),
            stop=tenacity.stop_after_attempt(8),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=2),
            reraise=True,
        )
        return bool(retry(self._create_once, key, data))

    def upload(self, source: Path, key: str, *, consume: bool = False) -> None:  # noqa: ARG002 - S3 always copies
        with source.open("rb") as file, self._explained(key):
            self._client.upload_fileobj(file, self._bucket, self._prefix + key, Config=self._transfer)

    def download(self, key: str, target: Path) -> None:
        temporary = target.parent / f"{target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            with temporary.open("xb") as file, self._explained(key):
                self._client.download_fileobj(self._bucket, self._prefix + key, file, Config=self._transfer)
            temporary.replace(target)
        except OSError as error:
            raise storage_error(error, target, "target") from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def list(self, folder: str) -> dict[str, int]:
        prefix = self._prefix + (f"{folder.strip('/')}/" if folder.strip("/") else "")
        found: dict[str, int] = {}
        with self._explained(folder):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                for item in page.get("Contents", []):
                    if not item["Key"].endswith("/"):  # a "folder" that a web console made
                        found[item["Key"].removeprefix(self._prefix)] = int(item["Size"])
        return found

    def delete(self, key: str) -> None:
        with contextlib.suppress(_MissingObjectError), self._explained(key):
            self._client.delete_object(**self._object(key))

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002 - never on this machine
        return None

    def _create_once(self, key: str, data: bytes) -> bool:
        try:
            with self._explained(key):
                self._client.put_object(**self._object(key), Body=data, IfNoneMatch="*")
        except _ObjectExistsError:
            return False
        return True

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._client_error(error, key) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise ConfigError(
                f"{self.root}: no S3 credentials", remedy="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role"
            ) from None
        except (CredentialRetrievalError, MetadataRetrievalError) as error:
            raise DependencyError(f"{self.root}: {error}", remedy="Check what gives the credentials, then run again") from None
        except S3DownloadFailedError:  # its parts have different ETags
            raise DependencyError(f"{self._url(key)} was replaced while it was read", remedy="Run again") from None
        except _DOWN as error:
            raise self._down(f"{type(error).__name__}: {error}") from None
        except (BotoCoreError, Boto3Error, ValueError) as error:  # ValueError: an endpoint that is not a URL
            raise ConfigError(f"{self.root} at {self._endpoint}: {error}", remedy="Check root and the store settings") from None

    def _client_error(self, error: ClientError, key: str) -> Exception:  # noqa: PLR0911 - one line per meaning of an error code
        """What a refused request means."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "NoSuchBucket":
            return ConfigError(f"{self.root}: bucket {self._bucket} does not exist at {self._endpoint}", remedy="Create it or correct root")
        if code in _MISSING:
            return _MissingObjectError(f"{self._url(key)} does not exist")
        if code in {"PreconditionFailed", "412"}:
            return _ObjectExistsError(f"{self._url(key)} exists")
        if code == "ConditionalRequestConflict" or status == 409:
            return _ConflictError(f"{self._url(key)}: other writers keep the object busy ({code})", remedy="Run again")
        if code == "RequestTimeTooSkewed":
            text = f"{self.root} at {self._endpoint} has another time than this machine ({code})"
            return ConfigError(text, remedy="Set this machine's clock")
        if code in _REFUSED:
            text = f"{self.root} at {self._endpoint} refuses the credentials ({code})"
            return ConfigError(text, remedy="Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights")
        if code == "NotImplemented":
            return ConfigError(f"{self.root} at {self._endpoint} cannot do {error.operation_name}: {error}")
        if code in _THROTTLED or status >= 500 or status == 429:
            return self._down(f"{code} ({status})")
        return ConfigError(f"{self._url(key)}: {str(error).rstrip('.')}", remedy="Check root and the store settings")

    def _down(self, reason: str) -> ItoolError:
        text = f"S3 at {self._endpoint} does not answer after {self._attempts} attempts: {reason}"
        return DependencyError(text, remedy="Check store.endpoint_url, then run again")


class _MissingObjectError(ArtifactError):
    """The key does not exist."""


class _ObjectExistsError(ArtifactError):
    """A conditional write found the key taken."""


def _remove_abandoned(target: Path) -> None:
    """Remove what downloads of the same file have left that were killed, perhaps on other machines: weights, in a cache that many share."""
    for part in target.parent.glob(f"{glob.escape(target.name)}.*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()


def _client(config: StoreConfig, attempts: int, read_seconds: float) -> Any:  # boto3 ships no type information
    # a session of its own: the default one is not thread safe and keeps the first credentials it saw
    return boto3.Session().client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region or ("us-east-1" if config.endpoint_url else None),
        config=Config(
            s3={"addressing_style": "path" if config.path_style else "auto"},
            request_checksum_calculation=config.checksums,
            response_checksum_validation=config.checksums,
            max_pool_connections=config.max_connections,
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=read_seconds,
        ),
    )
