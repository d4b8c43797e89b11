"""The cluster's own services go away for a while: runs wait, and lose nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import Site, finish, wait_until
from tests.real_cluster.trainings import training

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(2400)]  # most of it may be waiting for the others


def test_a_minute_without_s3_and_one_without_the_api_server_are_waited_for(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    _, process, _ = training(site, "stalled")
    for service in ("s3", "apiserver"):
        with paused(service):
            time.sleep(60)
        wait_until(lambda: site.get("jobs", "itool/run=stalled"), f"{service} to answer again", 60)
    finish(process)
    assert digests_in(site.store(), "stalled") == long_warmup


@contextmanager
def paused(name: str) -> Iterator[None]:
    """Stop a process of the test cluster for a while: CLUSTER_PIDS is a folder with a file per process, whose first word is its id."""
    folder = os.environ.get("CLUSTER_PIDS")
    if not folder:
        pytest.skip("CLUSTER_PIDS does not say where the cluster's process ids lie")
    pid = int((Path(folder) / name).read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
