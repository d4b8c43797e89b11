"""What an S3 store adds to the contract: settings that are wrong, servers that are gone, large files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from itool.artifacts import s3
from itool.artifacts.disk import TEMPORARY_SUFFIX
from itool.artifacts.s3 import S3Store
from itool.artifacts.store import open_store
from itool.config import StoreConfig
from itool.errors import ConfigError, DependencyError
from tests.artifacts.conftest import S3Server

pytestmark = pytest.mark.usefixtures("s3_credentials")


def test_open_store_speaks_s3(s3_config: StoreConfig) -> None:
    store = open_store("s3://bucket/opened", s3_config)
    store.write("a", b"1")
    assert store.root == "s3://bucket/opened"
    assert open_store("s3://bucket", s3_config).read("opened/a") == b"1"


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_both_checksum_settings_work(s3_config: StoreConfig, checksums: str) -> None:
    store = S3Store("s3://bucket/sums", s3_config.model_copy(update={"checksums": checksums}))
    store.write(checksums, b"1")
    assert store.read(checksums) == b"1"


def test_wrong_credentials_are_a_configuration_error(s3_config: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = S3Store("s3://bucket/x", s3_config)
    for action in (lambda: store.read("a"), lambda: store.create("a", b""), lambda: store.list(""), lambda: store.size("a")):
        with pytest.raises(ConfigError, match="refuses the credentials"):
            action()


def test_no_credentials_are_a_configuration_error(s3_config: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="no S3 credentials"):
        S3Store("s3://bucket/x", s3_config).read("a")


def test_a_service_that_gives_no_credentials_now_may_give_them_later(s3_config: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node's agent for workload identity that starts again."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/v1/credentials")
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    with pytest.raises(DependencyError, match="s3://test/x: Error when retrieving credentials from container-role"):
        S3Store("s3://test/x", s3_config)


def test_a_missing_bucket_is_a_configuration_error(s3_config: StoreConfig, tmp_path: Path) -> None:
    store = S3Store("s3://no-such-bucket/x", s3_config)
    source = tmp_path / "file"
    source.write_bytes(b"1")
    for action in (lambda: store.list("run"), lambda: store.read("a"), lambda: store.create("a", b"1"), lambda: store.upload(source, "a")):
        with pytest.raises(ConfigError, match="bucket no-such-bucket does not exist"):
            action()


@pytest.mark.parametrize("root", ["s3://", "s3:///x", "s3://UPPER_case!/x"])
def test_a_root_without_a_proper_bucket_is_a_configuration_error(s3_config: StoreConfig, root: str) -> None:
    with pytest.raises(ConfigError):
        S3Store(root, s3_config).list("")


@pytest.mark.parametrize("endpoint", ["nonsense", "127.0.0.1:9000"])
def test_an_endpoint_that_is_no_url_is_a_configuration_error(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match=f"s3://bucket/x at {endpoint}: Invalid endpoint"):
        S3Store("s3://bucket/x", StoreConfig())


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_with_a_password_is_refused_and_not_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://user:hunter2@127.0.0.1:1")
    with pytest.raises(ConfigError, match="holds a user or a password") as refused:
        S3Store("s3://bucket/x", StoreConfig())
    assert "hunter2" not in str(refused.value)


class Refusing:
    """A client to whom the server says the same for ever, or for the first `times`."""

    def __init__(self, code: str, status: int, times: int = 99) -> None:
        self.code, self.status, self.times = code, status, times
        self.asked = 0

    def refuse(self, **_: Any) -> None:
        self.asked += 1
        if self.asked <= self.times:
            answer: Any = {"Error": {"Code": self.code, "Message": "so"}, "ResponseMetadata": {"HTTPStatusCode": self.status}}
            raise ClientError(answer, "PutObject")

    get_object = put_object = head_object = delete_object = refuse


def refused(client: Refusing) -> S3Store:
    store = S3Store("s3://bucket/x", StoreConfig(endpoint_url="http://127.0.0.1:1"))
    store._client = client
    return store


@pytest.mark.parametrize(
    ("code", "status", "meaning", "words"),
    [
        ("SlowDown", 503, DependencyError, r"does not answer after 4 attempts: SlowDown \(503\)"),
        ("TooManyRequests", 429, DependencyError, "does not answer"),
        ("", 429, DependencyError, "does not answer"),
        ("RequestTimeout", 400, DependencyError, "does not answer"),
        ("InternalError", 500, DependencyError, "does not answer"),
        ("502", 502, DependencyError, "does not answer"),
        ("OperationAborted", 409, DependencyError, r"s3://bucket/x/a: other writers keep the object busy \(OperationAborted\)\. Run again"),
        ("AccessDenied", 403, ConfigError, r"refuses the credentials \(AccessDenied\)\. Check AWS_ACCESS_KEY_ID"),
        ("403", 403, ConfigError, "refuses the credentials"),
        ("RequestTimeTooSkewed", 403, ConfigError, r"another time than this machine \(RequestTimeTooSkewed\)\. Set this"),
        ("NotImplemented", 501, ConfigError, "cannot do PutObject"),
        ("InvalidArgument", 400, ConfigError, r"s3://bucket/x/a: .*Check root and the store settings"),
    ],
)
def test_what_a_server_answers_is_worth_a_retry_or_a_setting(code: str, status: int, meaning: type[Exception], words: str) -> None:
    store = refused(Refusing(code, status))
    for action in (lambda: store.read("a"), lambda: store.write("a", b""), lambda: store.size("a"), lambda: store.delete("a")):
        with pytest.raises(meaning, match=words):
            action()


def test_a_writer_who_meets_another_tries_again_and_gives_up_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _seconds: None))
    busy_once, busy = (Refusing("ConditionalRequestConflict", 409, times) for times in (1, 99))
    assert refused(busy_once).create("a", b"")
    assert busy_once.asked == 2
    with pytest.raises(DependencyError, match=r"s3://bucket/x/a: other writers keep the object busy \(ConditionalRequestConflict\)"):
        refused(busy).create("a", b"")
    assert busy.asked == 8


def test_an_endpoint_that_does_not_answer_is_a_dependency_error() -> None:
    store = S3Store("s3://bucket/x", StoreConfig(endpoint_url="http://127.0.0.1:1"), attempts=2)
    with pytest.raises(DependencyError, match="does not answer after 2 attempts"):
        store.list("")


def test_a_server_that_comes_back_is_used_again(s3_server: S3Server, s3_config: StoreConfig, tmp_path: Path) -> None:
    store = S3Store("s3://bucket/restart", s3_config, attempts=2)
    store.write("a", b"kept")
    s3_server.kill()
    try:
        source = tmp_path / "file"
        source.write_bytes(b"1")
        for action in (lambda: store.read("a"), lambda: store.upload(source, "b"), lambda: store.download("a", tmp_path / "c")):
            with pytest.raises(DependencyError):
                action()
        assert list(tmp_path.glob("c*")) == []
    finally:
        s3_server.start()
    assert store.read("a") == b"kept"
    assert store.create("m", b"1")


def test_an_outage_shorter_than_the_retries_is_not_seen(s3_server: S3Server, s3_config: StoreConfig) -> None:
    store = S3Store("s3://bucket/outage", s3_config, attempts=10)  # pauses are drawn; on a loaded machine the server needs seconds
    store.write("a", b"kept")
    s3_server.kill()
    comeback = threading.Timer(0.2, s3_server.start)
    comeback.start()
    try:
        assert store.read("a") == b"kept"
    finally:
        comeback.join()


def test_a_folder_that_a_web_console_made_is_no_object(s3_config: StoreConfig) -> None:
    store = S3Store("s3://bucket/console", s3_config)
    store._client.put_object(Bucket="bucket", Key="console/run/")
    store.write("run/a", b"1")
    assert store.list("") == {"run/a": 1}


def test_large_files_go_up_in_parts(s3_config: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    store = S3Store("s3://bucket/parts", s3_config)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(12_000_000))
    store.upload(source, "big")
    store.download("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_large_object_that_is_replaced_while_it_comes_down_is_worth_another_try(
    s3_config: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two attempts with one result both may store it, and in a bucket with keys of its own it then gets another ETag."""
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 1)
    monkeypatch.setattr(s3, "PART_BYTES", 2)
    store, other = S3Store("s3://bucket/replaced", s3_config), S3Store("s3://bucket/replaced", s3_config)
    store.write("a", b"first")
    store._client.meta.events.register("after-call.s3.GetObject", lambda **_: other.write("a", b"other"))
    with pytest.raises(DependencyError, match=r"s3://bucket/replaced/a was replaced while it was read\. Run again"):
        store.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_download_removes_what_killed_ones_of_the_same_file_have_left(s3_config: StoreConfig, tmp_path: Path) -> None:
    store = S3Store("s3://bucket/killed", s3_config)
    store.write("a", b"1")
    killed, under_way, of_another = (tmp_path / f"{name}{TEMPORARY_SUFFIX}" for name in ("a.0123", "a.4567", "ab.0123"))
    for path in (killed, under_way, of_another):
        path.write_bytes(b"half")
    for path in (killed, of_another):
        os.utime(path, (0, path.stat().st_mtime - s3.ABANDONED_SECONDS - 60))
    store.download("a", tmp_path / "a")
    assert set(tmp_path.iterdir()) == {tmp_path / "a", under_way, of_another}
