"""A namespace on the cluster that KUBECONFIG points at, images in its nodes, a bucket, and the command line against both.

Read from the environment: KUBECONFIG; CLUSTER_S3_ENDPOINT and CLUSTER_S3_ENDPOINT_IN_PODS, CLUSTER_S3_ACCESS_KEY and
CLUSTER_S3_SECRET_KEY; and either CLUSTER_IMAGES (`repository:tag` of images that the nodes can have already) or CLUSTER_BUILD_IMAGE and
CLUSTER_LOAD_IMAGE (commands `BUILD context target image` and `LOAD image...`); for outages also CLUSTER_PIDS and CLUSTER_START
(test_outages.py). What is missing is named by a visible skip, and by a failure where CLUSTER_IMAGES says that there is a cluster.

Most of these tests is waiting, so two processes share them, file by file (`make test-cluster`): the tests of a file may build on each
other. Each process has a namespace of its own and wants two GPUs (`nvidia.com/gpu`; counted is enough); what disturbs the whole cluster
takes it alone.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from itool.artifacts.s3 import S3Store
from itool.cluster.client import Cluster, open_cluster
from itool.config import StoreConfig
from tests.jobs.conftest import digests_in
from tests.missing import missing

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = ("controller", "warmup", "score", "generate", "dpo", "evaluate", "vllm-cpu")
SECRET = "s3-credentials"
BUCKET = "itool-tests"
VARIABLES = ("KUBECONFIG", "CLUSTER_S3_ENDPOINT", "CLUSTER_S3_ENDPOINT_IN_PODS", "CLUSTER_S3_ACCESS_KEY", "CLUSTER_S3_SECRET_KEY")
SMALL: dict[str, Any] = {
    "seed": 17,
    "iterations": 1,
    "model": {"path": "demo", "context_tokens": 384, "max_response_tokens": 96, "lora_rank": 16},
    "data": {"source": "demo", "count": 240, "held_out_count": 30},
    "warmup": {"epochs": 2, "batch_examples": 16, "optimizer": "muon", "learning_rate": 0.01, "checkpoint_seconds": 1},
    "select": {"alpha": 0.8},
    "search": {"root_samples": 6, "simulations": 2, "trees_in_flight": 8, "shards": 2},
    "dpo": {"updates": 6, "batch_pairs": 4, "checkpoint_seconds": 0.5},
    "runtime": {"threads": 1, "backend": "kubernetes"},
}
CALM = "calm"
LONG = {"iterations": 0, "warmup__epochs": 4}
REASON_SECONDS = 15
"""So soon `itoolctl status` says what has happened."""


@dataclass(frozen=True)
class Site:
    """One namespace, one bucket, and how to reach them. `folder` holds what the command line needs on this machine."""

    namespace: str
    folder: Path
    repository: str
    tag: str

    def kubectl(self, *arguments: str, given: str | None = None, check: bool = True) -> str:
        """kubectl in the namespace; its standard output."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def get(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind, by label selector. Tests ask several times a second: kubectl would cost them a third of a core."""
        return cluster_of(self.namespace).list(kind, selector)[0]

    def log(self, pod: str) -> str:
        """What a pod's only container has written; nothing when it has not started."""
        return b"".join(cluster_of(self.namespace).pod_log(pod, "")).decode()

    def document(self, run: str, *, root: str | None = None, **changes: Any) -> dict[str, Any]:
        """The configuration of a small run; `a__b=value` changes a.b."""
        pods = {"cpu": "100m", "memory": "1500Mi", "scratch": "1Gi", "shared_memory": "256Mi"}
        document: dict[str, Any] = {
            "run": run,
            "root": root or f"s3://{BUCKET}/{self.namespace}",
            **json.loads(json.dumps(SMALL)),
            "store": {"endpoint_url": os.environ["CLUSTER_S3_ENDPOINT"], "region": "us-east-1", "path_style": True},
            "kubernetes": {
                "namespace": self.namespace,
                "image_repository": self.repository,
                "image_tag": self.tag,
                "store_endpoint_url": os.environ["CLUSTER_S3_ENDPOINT_IN_PODS"],
                "credentials_secret": SECRET,
                "grace_seconds": 30,
                "pods": pods,
                "serving": {**pods, "memory": "5Gi", "gpus": 1},
            },
        }
        for path, value in changes.items():
            section, *parents, leaf = document, *path.split("__")
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = value
        return document

    def config(self, run: str, **changes: Any) -> Path:
        """`document` as a file."""
        path = self.folder / f"{run}-{secrets.token_hex(3)}.yaml"
        path.write_text(yaml.safe_dump(self.document(run, **changes)))
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`itoolctl ...` in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "itool.cli.main", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def itoolctl(self, *arguments: str, expect: int = 0, timeout_seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """`itoolctl ...`, checked for its exit code."""
        return finish(self.start(*arguments), expect, timeout_seconds)

    def status(self, config: Path, expect: int = 0) -> dict[str, Any]:
        """What `itoolctl status --output json` says of a run."""
        document: dict[str, Any] = json.loads(self.itoolctl("status", "--config", str(config), "--output", "json", expect=expect).stdout)
        return document

    def store(self, root: str | None = None) -> S3Store:
        """The artifacts, from this machine."""
        config = StoreConfig(endpoint_url=os.environ["CLUSTER_S3_ENDPOINT"], region="us-east-1", path_style=True)
        return S3Store(root or f"s3://{BUCKET}/{self.namespace}", config)


@functools.cache
def cluster_of(namespace: str) -> Cluster:
    """A connection to the namespace."""
    return open_cluster(namespace)


def finish(process: subprocess.Popen[str], expect: int = 0, timeout_seconds: float = 480) -> subprocess.CompletedProcess[str]:
    """Wait for a command of `Site.start` to end with the expected exit code."""
    shown = " ".join(map(str, process.args[2:]))
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        pytest.fail(f"{shown}: not done after {timeout_seconds} s\n{output}\n{errors}")
    assert process.returncode == expect, f"{shown}: exit code {process.returncode}\n{output}\n{errors}"
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def credentials() -> dict[str, str]:
    """The test bucket's credentials, as boto3 reads them."""
    environment = os.environ
    return {"AWS_ACCESS_KEY_ID": environment["CLUSTER_S3_ACCESS_KEY"], "AWS_SECRET_ACCESS_KEY": environment["CLUSTER_S3_SECRET_KEY"]}


def credentials_here() -> dict[str, str]:
    """The same with this machine's way to S3, for commands that are given no configuration."""
    return credentials() | {"AWS_ENDPOINT_URL_S3": os.environ["CLUSTER_S3_ENDPOINT"]}


def copy_stages(store: S3Store, run: str, target: str, stages: tuple[str, ...]) -> None:
    """Give another run the artifacts of some stages (`i0/prepare`), under the same keys."""
    for key in store.list(run):
        _, iteration, stage, *_ = [*key.split("/"), "", ""]
        if f"{iteration}/{stage}" in stages:
            store.write(f"{target}/{key.partition('/')[2]}", store.read(key))


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120, pause: float = 0.5) -> Any:
    """The first true answer of `condition`; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(pause)
    pytest.fail(f"{what}: not after {seconds} s")


def reason_in_status(site: Site, config: Path, reason: str, expect: int = 0) -> None:
    """Wait for a reason in the run's status; it must be asked for in time. Begin when the cluster itself shows what has happened."""
    wait_until(lambda: reason in json.dumps(site.status(config, expect)), f"{reason!r} in status", REASON_SECONDS)


@contextmanager
def locked(tmp_path_factory: pytest.TempPathFactory, what: str, operation: int) -> Iterator[None]:
    """A lock among the processes of one test run, shared (`LOCK_SH`) or exclusive (`LOCK_EX`)."""
    with (tmp_path_factory.getbasetemp().parent / f"{what}.lock").open("w") as file:
        fcntl.flock(file, operation)
        yield


@pytest.fixture(autouse=True)
def _cluster_in_peace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests share the cluster, but for one marked `alone`, which waits until no other runs and keeps others from beginning."""
    with locked(tmp_path_factory, "cluster", fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH):
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Repository and tag of images that the cluster's nodes have."""
    unset = [name for name in VARIABLES if not os.environ.get(name)]
    if unset or not shutil.which("kubectl"):
        raise missing(f"no cluster: {', '.join(unset) or 'kubectl'} is missing (tests/real_cluster/conftest.py says what is read)")
    if given := os.environ.get("CLUSTER_IMAGES"):
        repository, _, tag = given.rpartition(":")
        return repository, tag
    build, load = os.environ.get("CLUSTER_BUILD_IMAGE"), os.environ.get("CLUSTER_LOAD_IMAGE")
    if not build or not load:
        pytest.skip("no images: set CLUSTER_IMAGES, or CLUSTER_BUILD_IMAGE and CLUSTER_LOAD_IMAGE")
    repository, tag = "localhost/itool", "test"
    make = ["make", "images", f"BUILD_IMAGE={build}", f"IMAGE_REPOSITORY={repository}", f"IMAGE_TAG={tag}"]
    with locked(tmp_path_factory, "images", fcntl.LOCK_EX):  # the second process finds everything built
        subprocess.run(make, cwd=REPOSITORY, check=True)
        subprocess.run([load, *(f"{repository}/{target}:{tag}" for target in TARGETS)], cwd=REPOSITORY, check=True)
    return repository, tag


@pytest.fixture(scope="session")
def site(images: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A namespace that enforces Pod Security "restricted", with the credentials of a bucket; it is gone afterwards."""
    repository, tag = images
    found = Site(f"itool-test-{secrets.token_hex(3)}", tmp_path_factory.mktemp("site"), repository, tag)
    os.environ.update(credentials_here())
    make_namespace(found)
    client = found.store()._client
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    yield found
    subprocess.run(["kubectl", "delete", "namespace", found.namespace, "--wait=false"], capture_output=True, check=False)


def make_namespace(site: Site) -> None:
    """The namespace and its Secret."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.namespace, "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": site.namespace},
            "stringData": credentials(),
        },
    ]
    for document in objects:
        subprocess.run(["kubectl", "apply", "--filename", "-"], input=json.dumps(document), text=True, check=True, capture_output=True)


@pytest.fixture(scope="session")
def undisturbed(site: Site) -> dict[str, dict[str, str]]:
    """Digests of the small run CALM, made by processes on this machine with its artifacts in the same bucket."""
    config = site.config(CALM, runtime__backend="local")
    site.itoolctl("iterate", "--config", str(config))
    return digests_in(site.store(), CALM)


@pytest.fixture(scope="session")
def long_warmup(site: Site, undisturbed: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Digests of a run with a warm-up that lasts long enough to be disturbed, made on this machine."""
    copy_stages(site.store(), CALM, "long", ("i0/prepare",))
    config = site.config("long", runtime__backend="local", **LONG)
    site.itoolctl("iterate", "--config", str(config))
    return digests_in(site.store(), "long")


@pytest.fixture
def elsewhere(site: Site, tmp_path: Path) -> Site:
    """The same namespace, with another folder for what the command line leaves on this machine."""
    return replace(site, folder=tmp_path)
