"""The built images on a node: each starts as process 1 of a restricted pod whose root cannot be written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.real_cluster.conftest import TARGETS, Site, wait_until

pytestmark = pytest.mark.cluster

CONTROLLER_BYTES = 250e6
NO_TORCH = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
SIZE = """
import os
files = {}
for folder, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == os.stat("/").st_dev]
    for name in names:
        status = os.lstat(os.path.join(folder, name))
        files[status.st_dev, status.st_ino] = status.st_size
print(sum(size for (device, _), size in files.items() if device == os.stat("/").st_dev))
"""
TRAINING = "import datasets, peft, torch, transformers, trl; print(torch.ones(3) @ torch.ones(3))"


def pod(site: Site, name: str, target: str, **container: Any) -> dict[str, Any]:
    """A pod of an image that may do nothing but run and write below /tmp."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"test": "images"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "image",
                    "image": f"{site.repository}/{target}:{site.tag}",
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    **container,
                }
            ],
        },
    }


@pytest.mark.timeout(900)
def test_every_image_runs_its_own_entry_point_and_any_job(site: Site) -> None:
    pods = [pod(site, f"images-{target}", target, args=["--help"]) for target in TARGETS]
    pods += [
        pod(site, "images-report", "controller", command=["python", "-m", "jobs.report", "--help"]),
        pod(site, "images-no-torch", "controller", command=["python", "-c", NO_TORCH]),
        pod(site, "images-prepare", "warmup", command=["python", "-m", "jobs.prepare", "--help"]),
        pod(site, "images-training", "warmup", command=["python", "-c", TRAINING]),
    ]
    site.kubectl("apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))

    def phases() -> dict[str, str] | None:
        found = {p["metadata"]["name"]: p["status"]["phase"] for p in site.get("pods", "test=images")}
        return found if set(found.values()) <= {"Succeeded", "Failed"} else None

    ended = wait_until(phases, "the pods to end", seconds=600, pause=2)
    failed = {name: site.log(name)[-2000:] for name, phase in ended.items() if phase == "Failed"}
    site.kubectl("delete", "pods", "--selector", "test=images")
    assert failed == {}


@pytest.mark.timeout(300)
def test_the_controller_s_image_is_small(site: Site) -> None:
    """Measured inside, where it is unpacked; a node lists compressed sizes."""
    site.kubectl("apply", "--filename", "-", given=json.dumps(pod(site, "image-size", "controller", command=["python", "-c", SIZE])))
    wait_until(lambda: site.get("pods", "test=images")[0]["status"]["phase"] == "Succeeded", "the size")
    size = int(site.log("image-size"))
    site.kubectl("delete", "pod", "image-size", "--wait=false")
    assert 100e6 < size <= CONTROLLER_BYTES
