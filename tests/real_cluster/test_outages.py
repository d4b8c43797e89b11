"""The cluster's own services go away for a while: runs wait, and lose nothing; status says what is away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.jobs.conftest import digests_in
from tests.missing import missing
from tests.real_cluster.conftest import REASON_SECONDS, Site, finish, reason_in_status, wait_until
from tests.real_cluster.trainings import training

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(2400)]  # most of it may be waiting for the others


def test_a_minute_without_s3_and_one_without_the_api_server_are_waited_for(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, _ = training(site, "stalled")
    for service in ("s3", "apiserver"):
        with paused(service):
            began = time.monotonic()
            status_names(site, config, service)
            time.sleep(began + 60 - time.monotonic())
        wait_until(lambda: site.get("jobs", "itool/run=stalled"), f"{service} to answer again", 60)
    finish(process)
    assert digests_in(site.store(), "stalled") == long_warmup


def test_an_api_server_and_an_s3_that_refuse_connections_and_start_anew_are_waited_for(
    site: Site, long_warmup: dict[str, dict[str, str]]
) -> None:
    start = command_that_starts_services()
    config, process, _ = training(site, "refused")
    for service in ("apiserver", "s3"):
        with killed(service, start):
            status_names(site, config, service)
        wait_until(lambda: site.get("jobs", "itool/run=refused"), f"{service} to answer again", 60)
    finish(process)
    assert digests_in(site.store(), "refused") == long_warmup


def status_names(site: Site, config: Path, service: str) -> None:
    """A person who asks is told in time what is away, also where a connection is accepted and nobody answers."""
    problem = "the Kubernetes API at " if service == "apiserver" else f"S3 at {os.environ['CLUSTER_S3_ENDPOINT']} does not answer"
    began = time.monotonic()
    reason_in_status(site, config, problem, expect=69)
    assert time.monotonic() - began <= REASON_SECONDS


@contextmanager
def paused(name: str) -> Iterator[None]:
    """Stop a process of the test cluster for a while: connections are accepted, and nobody answers."""
    pid = process_of(pid_file(name))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def killed(name: str, start: str) -> Iterator[None]:
    """Kill a process of the test cluster for a while, and let `start` bring it back: connections are refused."""
    file = pid_file(name)
    os.kill(process_of(file), signal.SIGKILL)
    file.unlink()  # a process that nobody reaps would be taken for a living one
    try:
        yield
    finally:
        subprocess.run([start], stdin=subprocess.DEVNULL, check=True, timeout=300)


def pid_file(name: str) -> Path:
    """Where a process of the test cluster stands: CLUSTER_PIDS is a folder with a file per process, whose first word is its id."""
    folder = os.environ.get("CLUSTER_PIDS")
    if not folder:
        raise missing("CLUSTER_PIDS does not say where the cluster's process ids lie")
    return Path(folder) / name


def process_of(file: Path) -> int:
    """The process that a file of CLUSTER_PIDS names."""
    return int(file.read_text().split()[0])


def command_that_starts_services() -> str:
    """CLUSTER_START is a program that starts those of the cluster's processes that have no file in CLUSTER_PIDS, and waits for them."""
    start = os.environ.get("CLUSTER_START")
    if not start:
        raise missing("CLUSTER_START does not name the program that starts what is missing of the cluster")
    return start
