"""What an S3 store adds to the contract: settings that are wrong, servers that are gone, large files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from itool.artifacts import s3
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


def test_large_files_go_up_in_parts(s3_config: StoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    store = S3Store("s3://bucket/parts", s3_config)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(12_000_000))
    store.upload(source, "big")
    store.download("big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
