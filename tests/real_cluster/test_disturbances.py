"""What clusters do to a run, on a real one: its true reason is shown, nothing is lost, the digests are those of a calm run."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from itool.cluster.leases import StoreLease
from itool.cluster.objects import JOB_LABEL
from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import Site, finish, wait_until
from tests.real_cluster.trainings import prepared, training, training_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

REASON_SECONDS = 15
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
)


def test_a_pod_deleted_and_the_next_one_killed_mid_training_resume_from_their_checkpoints(
    site: Site, long_warmup: dict[str, dict[str, str]]
) -> None:
    _, process, pod = training(site, "killed")
    site.kubectl("delete", "pod", pod, "--wait=false")
    second = training_pod(site, "killed", process, other_than=pod)
    os.kill(process_of(second), signal.SIGKILL)
    finish(process)
    assert kept_logs(site, "killed", "i0-warmup").count("checkpoint resumed") == 2
    assert digests_in(site.store(), "killed") == long_warmup


def test_controllers_are_refused_interrupted_and_killed_and_the_job_goes_on(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, pod = training(site, "left")
    second = site.itoolctl("iterate", "--config", str(config), expect=69)
    assert len(second.stderr.strip().splitlines()) == 1
    assert "left" in second.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "itoolctl cancel" in errors.splitlines()[-1]
    assert site.kubectl("get", "pod", pod, "--output", "jsonpath={.status.phase}") in ("Running", "Succeeded")
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
    with ThreadPoolExecutor(2) as two:  # most of it is waiting
        runs = [f"stuck-{number}" for number in range(len(OBSTACLES))]
        list(two.map(partial(fails_and_says_why, site), runs, OBSTACLES))
    for run in (runs[0], runs[-1]):  # one that was pending, one that failed
        finish(site.start("iterate", "--config", str(site.config(run, iterations=0))))
        assert digests_in(site.store(), run)["i0/warmup"] == undisturbed["i0/warmup"]


def test_wrong_credentials_fail_at_once_with_64(site: Site, undisturbed: dict[str, dict[str, str]]) -> None:
    wrong = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}}
    wrong["stringData"] = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    site.kubectl("apply", "--filename", "-", given=json.dumps(wrong))
    config = prepared(site, "stranger", iterations=0, kubernetes__credentials_secret="wrong")
    done = site.itoolctl("iterate", "--config", str(config), expect=64)
    last = done.stderr.strip().splitlines()[-1]
    assert "i0/warmup" in last
    assert "refuses the credentials" in last


def test_an_unusable_base_model_fails_without_a_retry(site: Site) -> None:
    config = site.config("no-model", iterations=0, model__path="/no/such/model")
    done = site.itoolctl("iterate", "--config", str(config), expect=65)
    assert "/no/such/model" in done.stderr.strip().splitlines()[-1]
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
    wait_until(lambda: obstacle.reason in json.dumps(site.status(config)), f"{obstacle.reason} in status", REASON_SECONDS)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == obstacle.exit_code, errors
    assert obstacle.reason in errors.strip().splitlines()[-1]


def running_pods(site: Site, run: str) -> list[dict[str, Any]]:
    """The run's pods that have not ended."""
    return [pod for pod in site.get("pods", f"itool/run={run}") if pod["status"]["phase"] in ("Pending", "Running")]


def kept_logs(site: Site, run: str, label: str) -> str:
    """What the store keeps of a stage's pods."""
    store = site.store()
    return "".join(store.read(key).decode() for key in store.list(f"{run}/logs") if f"/{label}-" in key)


def process_of(pod: str) -> int:
    """The stage's process in a pod, where the node's processes can be seen from here; else the test is skipped."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (set((folder / name).read_bytes().split(b"\0")) for name in ("environ", "cmdline"))
        except OSError:
            continue
        if f"HOSTNAME={pod}".encode() in environment and b"/etc/itool/config.yaml" in command:
            return int(folder.name)
    pytest.skip("the processes of the node cannot be seen from here")
