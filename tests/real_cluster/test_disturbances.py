"""What clusters do to a run, on a real one: its true reason is shown, nothing is lost, the digests are those of a calm run."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import Site, finish, wait_until
from tests.real_cluster.trainings import prepared, training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

REASON_SECONDS = 15
NO_RETRY = {"kubernetes__backoff_limit": 0}


def test_a_pod_deleted_mid_training_resumes_from_its_checkpoint(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    _, process, pod = training(site, "deleted")
    site.kubectl("delete", "pod", pod, "--wait=false")
    finish(process)
    assert "checkpoint resumed" in kept_logs(site, "deleted", "i0-warmup")
    assert digests_in(site.store(), "deleted") == long_warmup


def test_a_stage_killed_by_sigkill_resumes_from_its_checkpoint(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    _, process, _ = training(site, "killed")
    os.kill(stage_process("jobs.warmup"), signal.SIGKILL)
    finish(process)
    assert "checkpoint resumed" in kept_logs(site, "killed", "i0-warmup")
    assert digests_in(site.store(), "killed") == long_warmup


def test_a_controller_killed_during_a_stage_is_followed_by_another(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, pod = training(site, "orphan")
    process.kill()
    process.communicate()
    finish(site.start("iterate", "--config", str(config), "--wait-lease", "120"))
    assert [p["metadata"]["name"] for p in site.get("pods", "itool/run=orphan,itool/stage=warmup")] == [pod]
    assert digests_in(site.store(), "orphan") == long_warmup


def test_an_interrupted_controller_leaves_its_job_alone(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, pod = training(site, "left")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "itoolctl cancel" in errors.splitlines()[-1]
    assert site.kubectl("get", "pod", pod, "--output", "jsonpath={.status.phase}") in ("Running", "Succeeded")
    finish(site.start("iterate", "--config", str(config)))
    assert digests_in(site.store(), "left") == long_warmup


def test_cancel_stops_the_stage_with_a_checkpoint(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config, process, _ = training(site, "cancelled")
    site.itoolctl("cancel", "cancelled", "--config", str(config))
    process.communicate(timeout=120)
    assert process.returncode == 75
    wait_until(lambda: not running_pods(site, "cancelled"), "no pod of the run is left", 90)
    finish(site.start("iterate", "--config", str(config)))
    assert digests_in(site.store(), "cancelled") == long_warmup


def test_a_second_controller_is_told_who_acts(site: Site, undisturbed: dict[str, dict[str, str]]) -> None:
    config, process, _ = training(site, "two")
    second = site.itoolctl("iterate", "--config", str(config), expect=69)
    assert len(second.stderr.strip().splitlines()) == 1
    assert "two" in second.stderr
    finish(process)


@pytest.mark.parametrize(
    ("changes", "reason", "code"),
    [
        ({"kubernetes__stages": {"warmup": {"gpus": 99}}, "kubernetes__pending_seconds": 25}, "Insufficient", 69),
        (
            {"kubernetes__images": {"warmup": "localhost/itool/nothing:none"}, "kubernetes__pending_seconds": 25},
            "nothing:none",
            69,
        ),
        ({"kubernetes__stages": {"warmup": {"cpu": "100m", "memory": "100Mi"}}, **NO_RETRY}, "OOMKilled", 1),
    ],
)
def test_a_pod_that_cannot_run_says_why(
    site: Site, undisturbed: dict[str, dict[str, str]], changes: dict[str, Any], reason: str, code: int
) -> None:
    name = f"stuck-{secrets.token_hex(2)}"
    config = prepared(site, name, iterations=0, **changes)
    process = site.start("iterate", "--config", str(config))
    wait_until(lambda: site.get("pods", f"itool/run={name},itool/stage=warmup"), "a warm-up pod", 60)
    shown = wait_until(lambda: reason in json.dumps(site.status(config)), f"{reason} in status", REASON_SECONDS + 15)
    assert shown
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    assert reason in errors.strip().splitlines()[-1]
    mended = site.config(name, iterations=0)
    finish(site.start("iterate", "--config", str(mended)))
    made = digests_in(site.store(), name)
    assert made["i0/warmup"] == undisturbed["i0/warmup"]


def test_wrong_credentials_fail_at_once_with_64(site: Site) -> None:
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


def test_a_full_scratch_folder_ends_with_74_and_a_larger_one_mends_it(site: Site, undisturbed: dict[str, dict[str, str]]) -> None:
    tiny = {  # in memory, since the kubelet looks at the size of an emptyDir on disk only once a minute
        "cpu": "100m",
        "memory": "1500Mi",
        "volumes": [{"name": "tiny", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        "volume_mounts": [{"name": "tiny", "mountPath": "/tiny"}],
        "env": {"TMPDIR": "/tiny"},
    }
    config = prepared(site, "full", iterations=0, kubernetes__stages={"warmup": tiny}, **NO_RETRY)
    done = site.itoolctl("iterate", "--config", str(config), expect=74)
    assert "No space left on device" in done.stderr.strip().splitlines()[-1]
    site.itoolctl("iterate", "--config", str(site.config("full", iterations=0)))
    assert digests_in(site.store(), "full")["i0/warmup"] == undisturbed["i0/warmup"]


def test_a_minute_without_s3_is_waited_for(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    _, process, _ = training(site, "stalled")
    with paused("s3"):
        time.sleep(60)
    finish(process)
    assert digests_in(site.store(), "stalled") == long_warmup


def test_a_minute_without_the_api_server_is_waited_for(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    _, process, _ = training(site, "blind")
    with paused("apiserver"):
        time.sleep(60)
    finish(process)
    assert digests_in(site.store(), "blind") == long_warmup


def running_pods(site: Site, run: str) -> list[dict[str, Any]]:
    """The run's pods that have not ended."""
    return [pod for pod in site.get("pods", f"itool/run={run}") if pod["status"]["phase"] in ("Pending", "Running")]


def kept_logs(site: Site, run: str, label: str) -> str:
    """What the store keeps of a stage's pods."""
    store = site.store()
    return "".join(store.read(key).decode() for key in store.list(f"{run}/logs") if f"/{label}-" in key)


def stage_process(module: str) -> int:
    """The process of a stage's container, where the node's processes can be seen from here; else the test is skipped."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in command and b"/etc/itool/config.yaml" in command:
            return int(folder.name)
    pytest.skip("the processes of the node cannot be seen from here")


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
