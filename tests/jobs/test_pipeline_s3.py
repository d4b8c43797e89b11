"""The whole pipeline with its artifacts in S3: the same run as in a folder, and nothing of it left on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from itool.artifacts.s3 import S3Store
from itool.config import StoreConfig
from tests.artifacts.conftest import ACCESS_KEY, SECRET_KEY, S3Server, s3_server
from tests.jobs.conftest import digests, digests_in, iterate, itoolctl

__all__ = ["s3_server"]  # a fixture that this module borrows

pytestmark = pytest.mark.slow


def test_a_run_in_s3_has_the_digests_of_the_run_in_a_folder(
    finished: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.url)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    connection = {"store__endpoint_url": s3_server.url, "store__path_style": True, "store__region": "us-east-1"}
    iterate(tmp_path, "--root", "s3://bucket/whole", **connection)
    store = S3Store("s3://bucket/whole", StoreConfig(endpoint_url=s3_server.url, path_style=True, region="us-east-1"))
    assert digests_in(store) == digests(finished)
    assert not (tmp_path / "runs").exists()
    status = json.loads(itoolctl("status", "demo", "--root", "s3://bucket/whole", "--output", "json", cwd=tmp_path).stdout)
    assert {stage["state"] for stage in status["stages"]} == {"done"}
