"""A queue on a real API server. Kueue itself is not there: the test defines its one object and does to Jobs what Kueue does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import LONG, Site, finish, reason_in_status, wait_until
from tests.real_cluster.trainings import prepared, training_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DEFINITION = "localqueues.kueue.x-k8s.io"
WAITS = "waits in Kueue's queue gpus"


@pytest.fixture(scope="module", autouse=True)
def queue(site: Site) -> Iterator[None]:
    """The local queue `gpus`, which nobody but the test serves."""
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
    names = {"plural": "localqueues", "singular": "localqueue", "kind": "LocalQueue"}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": DEFINITION},
        "spec": {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }
    local_queue = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue", "metadata": {"name": "gpus"}}
    if site.kubectl("get", "crd", DEFINITION, "--ignore-not-found"):
        pytest.skip("this cluster has Kueue, which would act on the Jobs itself")
    site.kubectl("create", "--filename", "-", given=json.dumps(definition))
    try:
        site.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{DEFINITION}")
        site.kubectl("create", "--filename", "-", given=json.dumps(local_queue))
        yield
    finally:
        site.kubectl("delete", "crd", DEFINITION)


def test_a_queue_that_does_not_exist_is_refused_before_anything_is_created(site: Site) -> None:
    refused = site.itoolctl("iterate", "--config", str(site.config("no-queue", iterations=0, kubernetes__queue="cpus")), expect=64)
    assert "kubernetes.queue = 'cpus'" in refused.stderr.strip().splitlines()[-1]
    assert site.get("jobs", "itool/run=no-queue") == []


def test_a_job_waits_until_it_is_admitted_and_survives_preemption(site: Site, long_warmup: dict[str, dict[str, str]]) -> None:
    config = prepared(site, "queued", **LONG, kubernetes__queue="gpus")
    process = site.start("iterate", "--config", str(config))
    [warmup] = wait_until(lambda: site.get("jobs", "itool/run=queued,itool/stage=warmup"), "the warm-up's Job", 60)
    assert warmup["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    reason_in_status(site, config, WAITS)
    assert site.get("pods", "itool/run=queued") == []
    hold(site, warmup, False)
    pod = training_pod(site, "queued", process)
    hold(site, warmup, True)
    wait_until(lambda: pod not in [found["metadata"]["name"] for found in site.get("pods", "itool/run=queued")], "preemption", 60)
    reason_in_status(site, config, WAITS)
    hold(site, warmup, False)
    for stage in ("evaluate", "report"):
        [job] = wait_until(lambda stage=stage: site.get("jobs", f"itool/run=queued,itool/stage={stage}"), f"the Job of {stage}", 300)
        hold(site, job, False)
    finish(process)
    assert digests_in(site.store(), "queued") == long_warmup


def hold(site: Site, job: dict[str, Any], suspend: bool) -> None:
    """What Kueue does to a Job: admit it, or take its pods away."""
    site.kubectl("patch", "job", job["metadata"]["name"], "--patch", json.dumps({"spec": {"suspend": suspend}}))
