"""A real S3 protocol server for the tests, and small helpers to run stages."""

from __future__ import annotations

import lzma
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts.resolve import Resolution, resolve
from itool.artifacts.s3 import S3Store
from itool.artifacts.stage import Body, run_stage
from itool.artifacts.store import FolderStore, Store
from itool.config import RunConfig, StoreConfig, parse_config
from itool.names import StageName
from itool.stages import StageId

ACCESS_KEY = "itool-test"
SECRET_KEY = "itool-test-secret"
PACKED_SERVER = Path(__file__).resolve().parents[3] / "shared/cluster/bin/versitygw.xz"


class S3Server:
    """versitygw over a folder. It can be killed and started again on the same port with the same objects."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = binary
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = os.environ | {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        command = [self.binary, "--quiet", "--port", f"127.0.0.1:{self.port}", "posix", str(self.folder)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"versitygw did not start (exit code {self.process.poll()})")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _server_binary(folder: Path) -> str | None:
    if found := shutil.which("versitygw"):
        return found
    if not PACKED_SERVER.exists():
        return None
    target = folder / "versitygw"
    with lzma.open(PACKED_SERVER) as packed, target.open("wb") as binary:
        shutil.copyfileobj(packed, binary)
    target.chmod(0o755)
    return str(target)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    binary = _server_binary(folder)
    if binary is None:
        pytest.skip("no S3 server: put versitygw (github.com/versity/versitygw) on PATH")
    (folder / "objects/bucket").mkdir(parents=True)
    server = S3Server(binary, folder / "objects")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the test's credentials are found, whatever this machine has."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("ITOOL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def s3_config(s3_server: S3Server) -> StoreConfig:
    return StoreConfig(endpoint_url=s3_server.url, path_style=True)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each kind of store, empty."""
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    config = request.getfixturevalue("s3_config")
    request.getfixturevalue("s3_credentials")
    return S3Store(f"s3://bucket/{tmp_path.name}", config, attempts=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


class Run:
    """A run in a store, with the command line that its jobs get."""

    def __init__(self, store: Store, folder: Path, **changes: Any) -> None:
        settings: dict[str, Any] = {"root": store.root, "iterations": 1} | changes
        if isinstance(store, S3Store):
            settings["store"] = {"endpoint_url": store._endpoint, "path_style": True}
        self.store = store
        self.config: RunConfig = parse_config(settings)
        self.file = folder / "config.yaml"
        self.file.write_text(self.config.as_yaml())

    def stage(self, name: StageName, body: Body, *extra: str) -> int:
        return run_stage(name, body, ["--config", str(self.file), *extra])

    def resolution(self, stage: StageId) -> Resolution:
        return resolve(self.store, self.config)[stage]


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Run:
    return Run(store, tmp_path)


@pytest.fixture
def folder_run(tmp_path: Path) -> Run:
    return Run(FolderStore(tmp_path / "store"), tmp_path)
