"""Training that spans two pods, which meet through a headless Service and add up their gradients with gloo."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import CALM, Site, finish
from tests.real_cluster.trainings import kept_logs, prepared, process_of, training_pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

TWO_PODS: dict[str, Any] = {"iterations": 0, "kubernetes__stages": {"warmup": {"cpu": "100m", "memory": "1500Mi", "nodes": 2}}}
TOLERANCE = 1e-5
"""Sums in another order, float32; the largest weight of this adapter is about 0.1. (AdamW would turn a gradient that is nothing but
rounding into a whole step; the demo's optimizer, Muon, does not.)"""


def test_two_pods_train_the_adapter_of_one(site: Site, undisturbed: dict[str, dict[str, str]], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    site.itoolctl("iterate", "--config", str(prepared(site, "pair", **TWO_PODS)))
    assert digests_in(site.store(), "pair")["i0/prepare"] == undisturbed["i0/prepare"]
    job = site.get("jobs", "itool/run=pair,itool/stage=warmup")[0]
    assert job["status"]["succeeded"] == 2
    alone, together = (load_file(adapter(site, run, tmp_path)) for run in (CALM, "pair"))
    assert alone.keys() == together.keys()
    difference = max(float(abs(alone[name] - together[name]).max()) for name in alone)
    assert max(float(abs(weight).max()) for weight in alone.values()) > 0.0
    assert difference <= TOLERANCE


@pytest.mark.parametrize("how", ["deleted", "killed"])
def test_when_one_of_two_pods_ends_both_are_replaced_and_learn_the_same(site: Site, how: str) -> None:
    """Their Service is lost as well: without it those that replace them would not meet."""
    run = f"pair-{how}"
    process = site.start("iterate", "--config", str(prepared(site, run, **TWO_PODS, warmup__checkpoint_seconds=0.2)))
    saving = training_pod(site, run, process)  # one worker saves for both
    first = pods_of(site, run)
    [other] = first - {saving}
    site.kubectl("delete", "service", f"{run}-workers")
    if how == "deleted":
        site.kubectl("delete", "pod", other, "--wait=false")
    else:
        os.kill(process_of(host_of(site, other)), signal.SIGKILL)
    finish(process)
    [job] = site.get("jobs", f"itool/run={run},itool/stage=warmup")
    assert job["status"]["succeeded"] == 2
    succeeded = pods_of(site, run, "Succeeded")
    assert len(succeeded) == 2
    assert not succeeded & first
    assert "checkpoint resumed" in kept_logs(site, run, "i0-warmup")
    assert digests_in(site.store(), run) == digests_in(site.store(), "pair")


def host_of(site: Site, pod: str) -> str:
    """The name by which other pods know it."""
    return site.kubectl("get", "pod", pod, "--output", "jsonpath={.spec.hostname}")


def pods_of(site: Site, run: str, phase: str = "") -> set[str]:
    """Names of the pods of a run's warm-up, in one phase or in any."""
    found = site.get("pods", f"itool/run={run},itool/stage=warmup")
    return {pod["metadata"]["name"] for pod in found if phase in ("", pod["status"]["phase"])}


def adapter(site: Site, run: str, folder: Path) -> Path:
    """A local copy of a run's warm-up adapter."""
    store, target = site.store(), folder / f"{run}.safetensors"
    keys: list[Any] = [
        key for key in store.list(f"{run}/i0/warmup") if key.endswith("/adapter_model.safetensors") and "checkpoint" not in key
    ]
    store.download(keys[0], target)
    return target
