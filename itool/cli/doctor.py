"""`itoolctl doctor`: is everything here that a run needs? One line per check, with a remedy where something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from itool.cli.echo import echo
from itool.cli.options import BackendOption, ConfigOption, Output, OutputOption, RootOption, SetOption, given_config, note, print_json
from itool.cli.tables import folded, terminal_width
from itool.cluster.check import Check
from itool.paths import absolute_path, local_path

if TYPE_CHECKING:
    from itool.artifacts.store import Store
    from itool.config import PolicyConfig, RunConfig

TRAINING_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors")
ANSWER_SECONDS = 5.0
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
    """Check what a run needs. On this machine, or with --backend kubernetes in the cluster; nothing is created but one small object.

    Ends with the code of the first thing that is missing: 64 a setting, 69 a service that does not answer, 74 a folder that cannot be
    written, 1 anything else on this machine.
    """
    settings = given_config(config, sets, root=root, backend=backend)
    found: list[Check] = []
    for check in _checks(settings, preflight=preflight):
        found.append(check)
        if output is Output.text and not preflight:
            _show(check)
    if output is Output.json:
        print_json([asdict(check) | {"exit_code": check.exit_code if check.state == "missing" else 0} for check in found])
    missing = [check for check in found if check.state == "missing"]
    if output is Output.text and preflight and not missing:  # a pod's two streams mix: in its log the reason stands alone
        for check in found:
            _show(check)
    if missing:
        note(f"itoolctl: {missing[0].line}")
        raise typer.Exit(missing[0].exit_code)


def _show(check: Check) -> None:
    line = f"{check.state:<8} {check.name:<11} {check.line}"
    echo("\n".join(folded(line, terminal_width(), indent=" " * 21)))


def _checks(config: RunConfig, *, preflight: bool) -> Iterator[Check]:
    """What is worth asking, in the order in which a run would need it."""
    if preflight:
        yield from (_credentials(config), _store(config))
    elif config.runtime.backend == "kubernetes":
        yield from (_python(config), _store(config))
        yield from _cluster(config)
    else:
        yield from (probe(config) for probe in (_python, _packages, _disk, _memory, _store, _vllm, _base_model, _data))


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
    from itool.cluster.preflight import SECRET_KEYS, secret_remedy  # noqa: PLC0415
    from itool.errors import ConfigError  # noqa: PLC0415

    name = config.kubernetes.credentials_secret
    if name is None:
        return Check("credentials", "ok", "no Secret named: workload identity")
    lacking = [key for key in SECRET_KEYS if not os.environ.get(key)]
    if not lacking:
        return Check("credentials", "ok", f"from Secret {name}")
    finding = f"run.kubernetes.credentials_secret = {name!r} does not exist in this namespace, or has no {', '.join(lacking)}"
    return Check("credentials", "missing", finding, secret_remedy(name), ConfigError.exit_code)


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
            "`make install-train`, or `pip install -e '.[train]'` in a checkout",
        )
    return Check("training", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _disk(config: RunConfig) -> Check:
    if "://" in config.root:
        return Check("disk", "ok", f"artifacts go to {config.root}")
    folder = absolute_path(local_path(config.root))
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
        new_folders = [folder for folder in _folders(store) if not folder.exists()]
        created, again = store.create(key, data), store.create(key, b"other")
        same = store.read(key) == data
        store.delete(key)
        for folder in new_folders:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
    except ItoolError as error:
        return Check("store", "missing", str(error), exit_code=error.exit_code)
    if created and same and not again:
        return Check("store", "ok", f"{store.root}: created, read and deleted an object; conditional writes work")
    finding = f"root = {store.root} replaces an object that must only be created"
    return Check("store", "missing", finding, "Use a store with conditional writes", ConfigError.exit_code)


def _folders(store: Store) -> list[Path]:
    """The folder of a local store and those above it, innermost first."""
    folder = store.local_path("doctor")
    return list(folder.parents) if folder else []


def _vllm(config: RunConfig) -> Check:
    from itool.errors import DependencyError  # noqa: PLC0415
    from itool.policy.server import find_vllm_python  # noqa: PLC0415

    if config.policy.backend == "vllm" and config.policy.url is not None:
        return _server(config.policy.url, config.policy)
    needed = config.policy.starts_vllm
    try:
        return Check("vllm", "ok", f"runs with {find_vllm_python()}")
    except DependencyError as error:
        text = f"{error}" if needed else f"{error}; only policy.backend vllm needs it"
        return Check("vllm", "missing" if needed else "note", text)


def _server(url: str, policy: PolicyConfig) -> Check:
    """Whether the server that the policy is to ask answers."""
    import httpx  # noqa: PLC0415

    from itool.errors import DependencyError  # noqa: PLC0415
    from itool.policy.vllm import client_settings  # noqa: PLC0415

    try:
        with httpx.Client(timeout=ANSWER_SECONDS, **client_settings(url, policy)) as client:
            answer = client.get("/v1/models")
        problem = "" if answer.status_code == httpx.codes.OK else f"answers /v1/models with {answer.status_code}"
    except httpx.HTTPError as error:
        problem = f"does not answer: {error}"
    if not problem:
        return Check("vllm", "ok", f"policy.url = {url} answers")
    return Check("vllm", "missing", f"policy.url = {url} {problem}", "Start the server, or correct policy.url", DependencyError.exit_code)


def _base_model(config: RunConfig) -> Check:
    """Whether the base model is here; what it holds is for `prepare` to say."""
    from itool.demo import base_model_path  # noqa: PLC0415
    from itool.errors import InputError  # noqa: PLC0415
    from itool.train.materialise import model_kind  # noqa: PLC0415

    name = config.model.path
    try:
        kind = model_kind(name)
    except InputError as error:
        return Check("base model", "missing", str(error))
    if kind == "hub":
        return _hub_model(name)
    if kind != "demo":
        return Check("base model", "ok", f"{local_path(name)} ({'folder' if kind == 'folder' else 'file'})")
    files = list(base_model_path().glob("*.safetensors"))
    if files:
        return Check("base model", "ok", f"demo, shipped with itool ({files[0].stat().st_size / 1e6:.1f} MB)")
    return Check("base model", "missing", "the demo's weights are not in the package", "Reinstall itool")


def _hub_model(name: str) -> Check:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub" / f"models--{name.replace('/', '--')}"
    if cache.is_dir():
        return Check("base model", "ok", f"{name}, in the hub cache")
    return Check(
        "base model",
        "note",
        f"{name} is taken from the Hugging Face hub when `prepare` runs",
        "Needs network access, and HF_TOKEN for gated models",
    )


def _data(config: RunConfig) -> Check:
    """Whether the data are here and can be read; what they hold is for `prepare` to say."""
    from itool.data.sources.seal_tools import find_pool  # noqa: PLC0415
    from itool.errors import InputError  # noqa: PLC0415

    data = config.data
    if data.source == "demo":
        return Check("data", "ok", "demo, generated")
    named = {"data.path": data.path, "data.held_out_path": data.held_out_path}
    if data.source == "seal_tools":
        try:
            named["data.tool_pool_path"] = find_pool(data)
        except InputError as error:
            return Check("data", "missing", str(error))
    found = {key: (path, _unreadable(path)) for key, path in named.items() if path is not None}
    for key, (path, problem) in found.items():
        if problem:
            return Check("data", "missing", f"{key} = {path}: {problem}", f"Correct {key}")
    remote = [path for path, problem in found.values() if problem is None]
    if remote:
        return Check("data", "note", f"{', '.join(remote)} is taken from the Hugging Face hub when `prepare` runs", "Needs network access")
    return Check("data", "ok", ", ".join(str(absolute_path(local_path(path))) for path, _ in found.values()))


def _unreadable(name: str) -> str | None:
    """Why a path cannot be read; "" when it can, None for the id of a hub data set."""
    from itool.data.sources.rows import is_hub_id  # noqa: PLC0415

    path = local_path(name)
    if path.exists():
        return "" if os.access(path, os.R_OK) else f"{absolute_path(path)} cannot be read"
    return None if is_hub_id(name) else f"{absolute_path(path)} does not exist"
