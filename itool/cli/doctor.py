"""`itoolctl doctor`: is everything here that a run needs? One line per check, with a remedy where something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itool.cli.options import BackendOption, ConfigOption, Output, OutputOption, RootOption, SetOption, given_config, note, print_json
from itool.cluster.check import Check

if TYPE_CHECKING:
    from itool.config import RunConfig

TRAINING_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors")
FREE_DISK_BYTES = 2 << 30
FREE_MEMORY_BYTES = 4 << 30


def doctor(
    *,
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    backend: BackendOption = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Only the configuration and the store: what a pod without an API token can check.")
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Check what a run needs: on this machine, or with --backend kubernetes in the cluster. Nothing is created but one small object.

    Ends with the code of the first thing that is missing: 64 a setting, 69 a service that does not answer, 1 something on this machine.
    """
    settings = given_config(config, sets, root=root, backend=backend)
    found: list[Check] = []
    for check in _checks(settings, preflight=preflight):
        found.append(check)
        if output is Output.text and not preflight:
            _show(check)
    if output is Output.json:
        print_json([asdict(check) for check in found])
    missing = [check for check in found if check.state == "missing"]
    if output is Output.text and preflight and not missing:  # a pod's two streams mix: in its log the reason stands alone
        for check in found:
            _show(check)
    if missing:
        note(f"itoolctl: {missing[0].line}")
        raise typer.Exit(missing[0].exit_code)


def _show(check: Check) -> None:
    typer.echo(f"{check.state:<8} {check.name:<11} {check.line}")


def _checks(config: RunConfig, *, preflight: bool) -> Iterator[Check]:
    """What is worth asking, in the order in which a run would need it."""
    if preflight:
        yield from (_credentials(config), _store(config))
    elif config.runtime.backend == "kubernetes":
        yield from (_python(config), _store(config))
        yield from _cluster(config)
    else:
        yield from (probe(config) for probe in (_python, _packages, _disk, _memory, _store, _vllm, _base_model))


def _cluster(config: RunConfig) -> Iterator[Check]:
    from itool.cluster.client import open_cluster  # noqa: PLC0415
    from itool.cluster.preflight import cluster_checks  # noqa: PLC0415
    from itool.errors import ConfigError  # noqa: PLC0415

    try:
        cluster = open_cluster(config.kubernetes.namespace)
    except ConfigError as error:
        yield Check("cluster", "missing", str(error), exit_code=error.exit_code)
        return
    yield from cluster_checks(cluster, config)


def _credentials(config: RunConfig) -> Check:
    """Whether the Secret that is named has reached this pod."""
    from itool.cluster.preflight import SECRET_KEYS  # noqa: PLC0415
    from itool.errors import ConfigError  # noqa: PLC0415

    name = config.kubernetes.credentials_secret
    lacking = [key for key in SECRET_KEYS if name and not os.environ.get(key)]
    if not lacking:
        return Check("credentials", "ok", f"from Secret {name}" if name else "no Secret named: workload identity")
    finding = f"run.kubernetes.credentials_secret = {name!r} does not exist in this namespace, or has no {', '.join(lacking)}"
    remedy = f"Create it with `kubectl create secret generic {name} " + " ".join(f"--from-literal={key}=..." for key in SECRET_KEYS)
    return Check("credentials", "missing", finding, f"{remedy}`", ConfigError.exit_code)


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
            "training",
            "missing",
            f"not installed: {', '.join(missing)}",
            "`make install-train`, or `pip install 'itool[train]'`",
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
    from itool.errors import ConfigError, ItoolError  # noqa: PLC0415

    key, data = f"doctor-{secrets.token_hex(6)}", b"round trip"
    try:
        store = open_store(config.root, config.store)
        created, again = store.create(key, data), store.create(key, b"other")
        same = store.read(key) == data
        store.delete(key)
    except ItoolError as error:
        return Check("store", "missing", str(error), exit_code=error.exit_code)
    if created and same and not again:
        return Check("store", "ok", f"{store.root}: created, read and deleted an object; conditional writes work")
    finding = f"root = {store.root} replaces an object that must only be created"
    return Check("store", "missing", finding, "Use a store with conditional writes", ConfigError.exit_code)


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
    from itool.demo import base_model_path  # noqa: PLC0415

    name = config.model.path
    if name == "demo":
        files = list(base_model_path().glob("*.safetensors"))
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
