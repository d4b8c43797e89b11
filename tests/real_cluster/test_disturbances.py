"""What clusters do to a run, on a real one: its true reason is shown, nothing is lost, the digests are those of a calm run."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest

from itool.cluster.leases import StoreLease
from itool.cluster.objects import JOB_LABEL
from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import Site, finish, reason_in_status, wait_until
from tests.real_cluster.trainings import kept_logs, prepared, process_of, training, training_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WRONG_SECRET = "wrong"
NO_RETRY = {"kubernetes__backoff_limit": 0}
SHORT_WAIT = {"kubernetes__pending_seconds": 25}
TINY_SCRATCH = {  # in memory, since the kubelet looks at the size of an emptyDir on disk only once a minute
    "cpu": "100m",
    "memory": "1500Mi",
    "volumes": [{"name": "tiny", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
    "volume_mounts": [{"name": "tiny", "mountPath": "/tiny"}],
    "env": {"TMPDIR": "/tiny"},
}


class Obstacle(NamedTuple):
    """Settings under which the warm-up's pod cannot run: the phase it stays in, the reason to show, the exit code."""

    changes: dict[str, Any]
    phase: str
    reason: str
    exit_code: int


OBSTACLES = (
    Obstacle({"kubernetes__stages": {"warmup": {"gpus": 99}}, **SHORT_WAIT}, "Pending", "Insufficient", 69),
    Obstacle({"kubernetes__images": {"warmup": "localhost/itool/nothing:none"}, **SHORT_WAIT}, "Pending", "nothing:none", 69),
    Obstacle({"kubernetes__stages": {"warmup": {"cpu": "100m", "memory": "100Mi"}}, **NO_RETRY}, "Failed", "OOMKilled", 1),
    Obstacle({"kubernetes__stages": {"warmup": TINY_SCRATCH}, **NO_RETRY}, "Failed", "No space left on device", 74),
    Obstacle({"kubernetes__credentials_secret": WRONG_SECRET}, "Failed", "refuses the credentials", 64),
)


def test_a_pod_deleted_and_the_next_one_killed_mid_training_resume_from_their_checkpoints(
    site: Site, long_warmup: dict[str, dict[str, str]]
) -> None:
    config, process, pod = training(site, "killed")
    with held(process_of(pod)):  # it would be gone before anybody could look
        site.kubectl("delete", "pod", pod, "--wait=false")
        reason_in_status(site, config, "is being stopped")
    second = training_pod(site, "killed", process, other_than=pod)
    os.kill(process_of(second), signal.SIGKILL)
    wait_until(lambda: phase_of(site, second) == "Failed", "the killed pod's end", 60)
    reason_in_status(site, config, "killed by signal 9")
    finish(process)
    assert kept_logs(site, "killed", "i0-warmup").count("checkpoint resumed") == 2
    assert digests_in(site.store(), "killed") == long_warmup


def test_controllers_are_refused_interrupted_and_killed_and_the_job_goes_on(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, pod = training(site, "left")
    second = site.itoolctl("iterate", "--config", str(config), expect=69)
    assert len(second.stderr.strip().splitlines()) == 1
    assert "left" in second.stderr
    assert f"process {process.pid} on {socket.gethostname()}" in second.stderr
    holder = site.status(config)["controller"]
    assert (holder["pid"], holder["host"]) == (process.pid, socket.gethostname())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "itoolctl cancel" in errors.splitlines()[-1]
    assert phase_of(site, pod) in ("Running", "Succeeded")
    third = site.start("iterate", "--config", str(config))
    wait_until(lambda: StoreLease(site.store(), "left").holder(), "the third controller's lease", 60)
    third.kill()
    third.communicate()
    finish(site.start("iterate", "--config", str(config), "--wait-lease", "120"))
    assert [p["metadata"]["name"] for p in site.get("pods", "itool/run=left,itool/stage=warmup")] == [pod]
    assert digests_in(site.store(), "left") == long_warmup


def test_cancel_stops_the_stage_with_a_checkpoint(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, _ = training(site, "cancelled")
    site.itoolctl("cancel", "cancelled", "--config", str(config))
    process.communicate(timeout=120)
    assert process.returncode == 75
    wait_until(lambda: not running_pods(site, "cancelled"), "no pod of the run is left", 90)
    finish(site.start("iterate", "--config", str(config)))
    assert digests_in(site.store(), "cancelled") == long_warmup


def test_pods_that_cannot_run_say_why_and_the_run_completes_once_mended(site: Site, undisturbed: dict[str, dict[str, str]]) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": WRONG_SECRET}, "stringData": wrong}
    site.kubectl("apply", "--filename", "-", given=json.dumps(secret))
    runs = [f"stuck-{number}" for number in range(len(OBSTACLES))]
    with ThreadPoolExecutor(2) as two:  # most of it is waiting
        list(two.map(partial(fails_and_says_why, site), runs, OBSTACLES))
        list(two.map(partial(completes, site), runs))
    for run in runs:
        assert digests_in(site.store(), run)["i0/warmup"] == undisturbed["i0/warmup"]


def test_an_unusable_base_model_fails_without_a_retry(site: Site) -> None:
    config = site.config("no-model", iterations=0, model__path="/no/such/model")
    done = site.itoolctl("iterate", "--config", str(config), expect=65)
    assert "/no/such/model" in done.stderr.strip().splitlines()[-1]
    [row, *_] = site.status(config)["stages"]
    assert row["state"] == "failed"
    assert "/no/such/model" in row["reason"]
    assert len(site.get("pods", "itool/run=no-model")) == 1


def fails_and_says_why(site: Site, run: str, obstacle: Obstacle) -> None:
    """Start a run that cannot go on: status, last line and exit code must tell why."""
    warmups = f"itool/run={run},itool/stage=warmup"
    before = {job["metadata"]["name"] for job in site.get("jobs", warmups)}
    config = prepared(site, run, iterations=0, **obstacle.changes)
    process = site.start("iterate", "--config", str(config))

    def is_stuck() -> bool:
        fresh = [pod for pod in site.get("pods", warmups) if pod["metadata"]["labels"][JOB_LABEL] not in before]
        return any(pod["status"]["phase"] == obstacle.phase for pod in fresh)

    wait_until(is_stuck, f"a pod that is {obstacle.phase}", 120)
    reason_in_status(site, config, obstacle.reason)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == obstacle.exit_code, errors
    last = errors.strip().splitlines()[-1]
    assert "i0/warmup" in last
    assert obstacle.reason in last


def completes(site: Site, run: str) -> None:
    """Run it again with settings under which it can."""
    site.itoolctl("iterate", "--config", str(site.config(run, iterations=0)))


def running_pods(site: Site, run: str) -> list[dict[str, Any]]:
    """The run's pods that have not ended."""
    return [pod for pod in site.get("pods", f"itool/run={run}") if pod["status"]["phase"] in ("Pending", "Running")]


def phase_of(site: Site, pod: str) -> str:
    """A pod's phase."""
    return site.kubectl("get", "pod", pod, "--output", "jsonpath={.status.phase}")


@contextmanager
def held(process: int) -> Iterator[None]:
    """A process that does nothing for a while; signals that come meanwhile reach it afterwards."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)
