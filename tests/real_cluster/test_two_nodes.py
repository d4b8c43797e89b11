"""Training that spans two pods, which meet through a headless Service and add up their gradients with gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import digests_in
from tests.real_cluster.conftest import CALM, Site
from tests.real_cluster.trainings import prepared

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

TOLERANCE = 1e-5
"""Sums in another order, float32; the largest weight of this adapter is about 0.1. (AdamW would turn a gradient that is nothing but
rounding into a whole step; the demo's optimizer, Muon, does not.)"""


def test_two_pods_train_the_adapter_of_one(site: Site, undisturbed: dict[str, dict[str, str]], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    pods = {"cpu": "100m", "memory": "1500Mi", "nodes": 2}
    config = prepared(site, "pair", iterations=0, kubernetes__stages={"warmup": pods})
    site.itoolctl("iterate", "--config", str(config))
    assert digests_in(site.store(), "pair")["i0/prepare"] == undisturbed["i0/prepare"]
    job = site.get("jobs", "itool/run=pair,itool/stage=warmup")[0]
    assert job["status"]["succeeded"] == 2
    alone, together = (load_file(adapter(site, run, tmp_path)) for run in (CALM, "pair"))
    assert alone.keys() == together.keys()
    difference = max(float(abs(alone[name] - together[name]).max()) for name in alone)
    assert max(float(abs(weight).max()) for weight in alone.values()) > 0.0
    assert difference <= TOLERANCE


def adapter(site: Site, run: str, folder: Path) -> Path:
    """A local copy of a run's warm-up adapter."""
    store, target = site.store(), folder / f"{run}.safetensors"
    keys: list[Any] = [
        key for key in store.list(f"{run}/i0/warmup") if key.endswith("/adapter_model.safetensors") and "checkpoint" not in key
    ]
    store.download(keys[0], target)
    return target
