"""`itoolctl doctor`: is everything here that a run needs? One line per check, with a remedy where something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from itool.cli.options import ConfigOption, Output, OutputOption, RootOption, SetOption, build_config, print_json

if TYPE_CHECKING:
    from itool.config import RunConfig

TRAINING_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors")
FREE_DISK_BYTES = 2 << 30
FREE_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Check:
    """One finding. `missing` means that a run will fail, `note` that something optional or tight should be known."""

    name: str
    state: Literal["ok", "note", "missing"]
    finding: str
    remedy: str = ""


def doctor(config: ConfigOption = None, sets: SetOption = None, root: RootOption = None, output: OutputOption = Output.text) -> None:
    """Check what a run needs: Python, packages, disk, memory, the store, vLLM, the base model. Exit code 1 when something is missing."""
    settings = build_config(config, sets, root=root)
    probes: list[Callable[[RunConfig], Check]] = [_python, _packages, _disk, _memory, _store, _vllm, _base_model]
    checks = [probe(settings) for probe in probes]
    if output is Output.json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            remedy = f". {check.remedy}" if check.remedy else ""
            typer.echo(f"{check.state:<8} {check.name:<11} {check.finding}{remedy}")
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


def _python(_config: RunConfig) -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", "ok", version)


def _packages(_config: RunConfig) -> Check:
    found, missing = {}, []
    for name in TRAINING_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            "training", "missing", f"not installed: {', '.join(missing)}", "Install them with `pip install 'itool[train]'` (`make install`)"
        )
    return Check("training", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _disk(config: RunConfig) -> Check:
    if "://" in config.root:
        return Check("disk", "ok", f"artifacts go to {config.root}")
    folder = Path(config.root).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.1f} GiB free for {config.root}"
    return (
        Check("disk", "ok", text)
        if free >= FREE_DISK_BYTES
        else Check("disk", "note", text, "Free some space or set --root to a larger disk")
    )


def _memory(_config: RunConfig) -> Check:
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return Check("memory", "note", "the system does not say how much is free")
    text = f"{available / (1 << 30):.1f} GiB available, {len(os.sched_getaffinity(0))} cores"
    if available >= FREE_MEMORY_BYTES:
        return Check("memory", "ok", text)
    return Check("memory", "note", text, "The demo wants 4 GiB; close something")


def _store(config: RunConfig) -> Check:
    """Create, create again, read and delete a small object: what every run relies on."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.errors import ItoolError  # noqa: PLC0415

    key, data = f"doctor-{secrets.token_hex(6)}", b"round trip"
    try:
        store = open_store(config.root, config.store)
        created, again = store.create(key, data), store.create(key, b"other")
        same = store.read(key) == data
        store.delete(key)
    except ItoolError as error:
        return Check("store", "missing", str(error))
    if created and same and not again:
        return Check("store", "ok", f"{store.root}: created, read and deleted an object; conditional writes work")
    return Check("store", "missing", f"{store.root} replaces an object that must only be created", "Use a store with conditional writes")


def _vllm(config: RunConfig) -> Check:
    from itool.errors import DependencyError  # noqa: PLC0415
    from itool.policy.server import find_vllm_python  # noqa: PLC0415

    needed = config.policy.backend == "vllm" and config.policy.url is None
    try:
        return Check("vllm", "ok", f"runs with {find_vllm_python()}")
    except DependencyError as error:
        text = f"{error}" if needed else f"{error}; only policy.backend vllm needs it"
        return Check("vllm", "missing" if needed else "note", text)


def _base_model(config: RunConfig) -> Check:
    name = config.model.path
    if name == "demo":
        files = list((Path(__file__).parents[1] / "demo" / "base").glob("*.safetensors"))
        if files:
            return Check("base model", "ok", f"demo, shipped with itool ({files[0].stat().st_size / 1e6:.1f} MB)")
        return Check("base model", "missing", "the demo's weights are not in the package", "Reinstall itool")
    path = Path(name).expanduser()
    if path.exists():
        return Check("base model", "ok", f"{path} ({'folder' if path.is_dir() else 'file'})")
    if name.endswith(".gguf") or name.startswith((".", "/", "~")):
        return Check("base model", "missing", f"{name} does not exist", "Correct model.path")
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub" / f"models--{name.replace('/', '--')}"
    if cache.is_dir():
        return Check("base model", "ok", f"{name}, in the hub cache")
    return Check(
        "base model",
        "note",
        f"{name} is taken from the Hugging Face hub when `prepare` runs",
        "Needs network access, and HF_TOKEN for gated models",
    )
