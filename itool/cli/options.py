"""Options that several commands share, and how they become a configuration."""

from __future__ import annotations

import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itool.cli.echo import echo
from itool.commands import DEFAULT_ROOT, ROOT_VARIABLE, itoolctl
from itool.names import Backend, Method

if TYPE_CHECKING:
    from itool.artifacts.store import FolderStore, Store
    from itool.config import RunConfig
    from itool.errors import InputError

OTHER_FILE = "Give the run's file with --config"


class Output(StrEnum):
    """How data is printed."""

    text = "text"
    json = "json"


def _refuse_empty(root: str | None) -> str | None:
    from itool.errors import ConfigError  # noqa: PLC0415

    if root == "":  # as of a variable that is not set: half of what is done would go to the default root
        raise ConfigError("root is empty", remedy="Use a folder or s3://bucket/prefix")
    return root


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file (YAML).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting, as in --set search.width=4; may be repeated."),
]
RunOption = Annotated[str | None, typer.Option("--run", "-r", metavar="NAME", help="Name of the run.")]
RootOption = Annotated[
    str | None,
    typer.Option("--root", metavar="ROOT", envvar=ROOT_VARIABLE, callback=_refuse_empty, help="Artifacts: a folder or s3://bucket/prefix."),
]
BackendOption = Annotated[
    Backend | None, typer.Option("--backend", help="Where stages run: processes on this machine, or Jobs in a cluster.")
]
CountOption = Annotated[int | None, typer.Option("--n", "-n", min=0, help="Number of iterations.")]
MethodOption = Annotated[Method | None, typer.Option("--method", "-m", help="What an iteration does.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="json for scripts.")]
RunArgument = Annotated[str | None, typer.Argument(metavar="RUN", help="Name of the run; the only one under the root when left out.")]


def build_config(
    config: Path | None,
    sets: list[str] | None,
    *,
    run: str | None = None,
    root: str | None = None,
    n: int | None = None,
    method: Method | None = None,
    backend: Backend | None = None,
) -> RunConfig:
    """The configuration of a command that may start something: file, then --set, then the short options.

    Without a file, a run that exists already is continued with the configuration that lies beside its artifacts; a run of the default
    name that does not takes the defaults. Raises InputError for a named run without a file that does not exist.
    """
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.config import load_config  # noqa: PLC0415 - pydantic, only when a command runs

    options = _given({"run": run, "root": root, "iterations": n, "method": method, "runtime.backend": backend})
    if config is not None:
        return load_config(config, sets, options)
    place = load_config(None, [text for text in sets or [] if _names_place(text)], _given({"run": run, "root": root}))
    store = open_store(place.root, place.store)
    stored = _stored_document(place.run, store)
    if stored is not None:
        return _continued(stored, store, place.run, place.root, sets=sets, options=options)
    if run is not None:
        raise no_such_run(place.run, place.root, start="give --config to start it")
    return load_config(None, sets, options)


def given_config(config: Path | None, sets: list[str] | None, *, root: str | None = None, backend: Backend | None = None) -> RunConfig:
    """The configuration of a command that asks no store for one, as it checks the store itself: a file or the defaults, then options."""
    from itool.config import load_config  # noqa: PLC0415

    return load_config(config, sets, _given({"root": root, "runtime.backend": backend}))


def existing_config(
    run: str | None,
    root: str | None,
    config: Path | None = None,
    sets: list[str] | None = None,
    backend: Backend | None = None,
    *,
    known_keys_only: bool = False,
    hurried: bool = False,
) -> RunConfig:
    """The configuration of a run that exists. Raises InputError when there is no such run.

    `known_keys_only` leaves out what a newer version has stored beside the rest: enough to stop a run or to read its logs. `hurried` as
    in `open_store`.
    """
    if config is not None:
        return build_config(config, sets, run=run, root=root, backend=backend)
    from itool.config import check_run_name  # noqa: PLC0415

    name = _only_run(root, hurried=hurried) if run is None else run
    check_run_name(name)
    store = open_root(root, hurried=hurried)
    stored = _stored_document(name, store)
    if stored is None:
        raise no_such_run(name, root)
    options = _given({"run": name, "root": root, "runtime.backend": backend})
    if known_keys_only:
        from itool.config import drop_unknown_keys  # noqa: PLC0415

        drop_unknown_keys(stored)
    return _continued(stored, store, name, root, sets=sets, options=options)


def no_such_run(name: str, root: str | None, *, start: str = "") -> InputError:
    """The error about a run that is not there, with those that are; `start` says how it would begin."""
    from itool.errors import InputError  # noqa: PLC0415

    known = run_names(root)
    there = f"There {'is' if len(known) == 1 else 'are'} {', '.join(known)}" if known else ""
    remedy = "; or ".join(filter(None, (there, start))) or _start(root)
    return InputError(f"there is no run {name} in {root or DEFAULT_ROOT}", remedy=remedy[:1].upper() + remedy[1:])


def open_root(root: str | None, *, hurried: bool = False) -> Store:
    """The store of a root when no configuration is at hand; S3 endpoints then come from boto3's own environment variables."""
    from itool.artifacts.store import open_store  # noqa: PLC0415
    from itool.config import StoreConfig  # noqa: PLC0415

    return open_store(root or DEFAULT_ROOT, StoreConfig(), hurried=hurried)


def run_names(root: str | None, *, hurried: bool = False) -> list[str]:
    """Runs under a root: folders with a stored configuration. Raises StorageError for a root that cannot be read."""
    from itool.artifacts.store import FolderStore  # noqa: PLC0415
    from itool.cluster.controller import CONFIG_NAME  # noqa: PLC0415

    store = open_root(root, hurried=hurried)
    if isinstance(store, FolderStore):
        return _run_folders(store)
    return sorted(key.partition("/")[0] for key in store.list("") if key.count("/") == 1 and key.endswith(f"/{CONFIG_NAME}"))


def _run_folders(store: FolderStore) -> list[str]:
    """The folders of a root that hold a configuration, and those named as a run that do not say: whoever reads them is told why."""
    from itool.artifacts.disk import storage_error  # noqa: PLC0415
    from itool.artifacts.store import list_folder  # noqa: PLC0415
    from itool.cluster.controller import config_key  # noqa: PLC0415
    from itool.config import RUN_NAME  # noqa: PLC0415
    from itool.errors import StorageError  # noqa: PLC0415

    def has(folder: str) -> bool:
        try:
            return store.size(config_key(folder)) is not None
        except StorageError:
            return re.fullmatch(RUN_NAME, folder) is not None  # no run is the lost+found of a disk

    if store.folder.is_file():
        raise StorageError(f"root {store.root} is a file", remedy="Give a folder or s3://bucket/prefix with --root")
    try:
        return [entry.name for entry in list_folder(store.folder) if has(entry.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, store.folder, "reading") from None


def print_json(document: Any) -> None:
    """One JSON document to standard output."""
    echo(json.dumps(document, indent=2, ensure_ascii=False))


def note(message: str) -> None:
    """A line for the person, to standard error."""
    echo(message, err=True)


def _only_run(root: str | None, *, hurried: bool) -> str:
    from itool.errors import ConfigError, InputError  # noqa: PLC0415

    names = run_names(root, hurried=hurried)
    if not names:
        raise InputError(f"there is no run in {root or DEFAULT_ROOT}", remedy=f"{_start(root)}, or give --root")
    if len(names) > 1:
        raise ConfigError(f"{root or DEFAULT_ROOT} holds {len(names)} runs: {', '.join(names)}", remedy="Name one")
    return names[0]


def _start(root: str | None) -> str:
    return f"Start one with {itoolctl('iterate', root or DEFAULT_ROOT)}"


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _names_place(override: str) -> bool:
    """Whether a --set says where the run's configuration lies."""
    return override.partition("=")[0].partition(".")[0].strip() in ("run", "root", "store")


def _continued(
    stored: dict[str, Any], store: Store, run: str, root: str | None, *, sets: list[str] | None, options: dict[str, Any]
) -> RunConfig:
    """The stored configuration with what was given now; its own root is the one that it was found under."""
    from itool.cluster.controller import config_key  # noqa: PLC0415
    from itool.config import parse_config  # noqa: PLC0415
    from itool.errors import ConfigError  # noqa: PLC0415

    origin = f"{store.root}/{config_key(run)}"
    try:
        parse_config(stored, origin=origin)
    except ConfigError as error:  # not the options' fault
        raise ConfigError(str(error), remedy=f"Use the itool that has written it. {OTHER_FILE}") from None
    return parse_config(stored | {"root": root or DEFAULT_ROOT}, sets, options, origin=origin)


def _stored_document(run: str, store: Store) -> dict[str, Any] | None:
    import yaml  # noqa: PLC0415

    from itool.cluster.controller import config_key  # noqa: PLC0415
    from itool.config import ENDPOINT_VARIABLES  # noqa: PLC0415
    from itool.config_yaml import read_yaml  # noqa: PLC0415
    from itool.errors import InputError  # noqa: PLC0415

    key = config_key(run)
    if store.size(key) is None:
        return None
    try:
        document = read_yaml(store.read(key))
    except yaml.YAMLError:
        document = None
    if not isinstance(document, dict):
        raise InputError(f"{store.root}/{key} is not a configuration", remedy=OTHER_FILE)
    if any(name in os.environ for name in ENDPOINT_VARIABLES):  # the run's own endpoint may be one that only pods reach
        document["store"] = {**(document.get("store") or {}), "endpoint_url": None}
    return document
