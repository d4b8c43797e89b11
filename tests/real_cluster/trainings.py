"""Runs that train long enough to be disturbed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.missing import missing
from tests.real_cluster.conftest import CALM, LONG, Site, copy_stages, wait_until


def training(site: Site, run: str) -> tuple[Path, subprocess.Popen[str], str]:
    """A run of the long warm-up that has stored its first checkpoint: its configuration, its controller and its pod."""
    config = prepared(site, run, **LONG)
    process = site.start("iterate", "--config", str(config))
    return config, process, training_pod(site, run, process)


def prepared(site: Site, run: str, **changes: Any) -> Path:
    """The configuration of a run whose `prepare` is that of the undisturbed run, which must be there (it is the same in all of them)."""
    copy_stages(site.store(), CALM, run, ("i0/prepare",))
    return site.config(run, **changes)


def kept_logs(site: Site, run: str, label: str) -> str:
    """What the store keeps of a stage's pods."""
    store = site.store()
    return "".join(store.read(key).decode() for key in store.list(f"{run}/logs") if f"/{label}-" in key)


def training_pod(site: Site, run: str, process: subprocess.Popen[str], other_than: str = "") -> str:
    """The warm-up's pod (not one that has gone), when it has stored a checkpoint."""

    def found() -> str | None:
        assert process.poll() is None, process.communicate()
        for pod in site.get("pods", f"itool/run={run},itool/stage=warmup"):
            name: str = pod["metadata"]["name"]
            if name != other_than and "checkpoint saved" in site.log(name):
                return name
        return None

    return str(wait_until(found, f"a checkpoint of {run}'s warm-up", 180, 0.2))


def process_of(host: str) -> int:
    """A stage's first process, by its pod's host name; the test ends where the node's processes cannot be seen from here."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (set((folder / name).read_bytes().split(b"\0")) for name in ("environ", "cmdline"))
            status = (folder / "status").read_text()
        except OSError:
            continue
        is_first = next((line.split()[-1] == "1" for line in status.splitlines() if line.startswith("NSpid:")), False)  # in its container
        if is_first and f"HOSTNAME={host}".encode() in environment and b"/etc/itool/config.yaml" in command:
            return int(folder.name)
    raise missing("the processes of the node cannot be seen from here")
