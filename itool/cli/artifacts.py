"""`itoolctl artifacts`: look at, verify, copy out and remove what stages have made.

A name is `run/i1/dpo`, with the start of the key where there are several.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from itool.cli.echo import echo
from itool.cli.options import Output, OutputOption, RootOption, no_such_run, note, open_root, print_json
from itool.cli.tables import columns_or_below, duration, size, terminal_width

if TYPE_CHECKING:
    from itool.artifacts.catalogue import CatalogueEntry
    from itool.artifacts.store import Store

app = typer.Typer(help="Look at, verify, copy out and remove artifacts.", no_args_is_help=True, rich_markup_mode=None)
NameArgument = Annotated[str, typer.Argument(metavar="ARTIFACT", help="As `ls` prints it; the key may be left out when there is one.")]
RemovedArgument = Annotated[str, typer.Argument(metavar="ARTIFACT", help="As `ls` prints it, at least as far as the stage.")]


@app.command("ls")
def ls(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run.")] = None,
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """List artifacts, oldest first."""
    store = open_root(root)
    entries = _list(store, run, root)
    if output is Output.json:
        print_json([_document(entry) for entry in entries])
        return
    if not entries:
        note(f"There is no artifact in {store.root}.")
        return
    rows = [_cells(entry) for entry in entries]
    header, right, width = ["artifact", "digest", "size", "time", ""], ["size", "time"], terminal_width()
    echo(columns_or_below(header, rows, right=right, below=[""], details=lambda row: row[""] or "", width=width))


@app.command("show")
def show(name: NameArgument, root: RootOption = None, output: OutputOption = Output.text) -> None:
    """Show an artifact's manifest. It names inputs, settings, files, counts, times."""
    from itool.artifacts.catalogue import find_artifact  # noqa: PLC0415
    from itool.artifacts.manifest import manifest_key  # noqa: PLC0415

    store = open_root(root)
    prefix = find_artifact(store, name)
    text = store.read(manifest_key(prefix)).decode()
    if output is Output.text:
        note(prefix)
    echo(text, nl=False)


@app.command("verify")
def verify(
    run: Annotated[str | None, typer.Argument(metavar="RUN|ARTIFACT", help="Only this.")] = None,
    root: RootOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Read every file and compare size and SHA-256 with the manifests. Exit code 65 when something is missing or altered."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from itool.artifacts.catalogue import find_artifact, verify_artifact  # noqa: PLC0415
    from itool.artifacts.manifest import NewerArtifact  # noqa: PLC0415
    from itool.commands import removal  # noqa: PLC0415
    from itool.errors import ArtifactError, InputError  # noqa: PLC0415

    store = open_root(root)
    prefixes = [find_artifact(store, run)] if run and run.count("/") >= 2 else [entry.prefix for entry in _list(store, run, root)]
    if not prefixes:
        raise InputError(f"there is no artifact in {store.root}{f'/{run}' if run else ''}", remedy="Give another --root")
    problems, newer = {}, []
    for prefix in track(prefixes, "reading", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()):
        try:
            problems[prefix] = verify_artifact(store, prefix)
        except NewerArtifact as error:
            problems[prefix] = [str(error)]
            newer.append(prefix)
    if output is Output.json:
        print_json([{"artifact": prefix, "problems": found} for prefix, found in problems.items()])
    else:
        for prefix, found in problems.items():
            for problem in found:
                echo(f"{prefix}: {problem}")
    damaged = [prefix for prefix, found in problems.items() if found]
    if damaged:
        count = sum(len(problems[prefix]) for prefix in damaged)
        altered = [prefix for prefix in damaged if prefix not in newer]
        remedy = "Use the itool that wrote them"
        if altered:
            remedy = f"Remove with {removal(altered[0], store.root)}{', and so on,' if len(altered) > 1 else ''} and run again"
        raise ArtifactError(f"{count} problem{'s' if count > 1 else ''} in {len(damaged)} of {len(prefixes)} artifacts", remedy=remedy)
    note("1 artifact is whole." if len(prefixes) == 1 else f"{len(prefixes)} artifacts are whole.")


@app.command("get")
def get(
    name: NameArgument,
    target: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Only these; a name that ends in / is a folder.")] = None,
    root: RootOption = None,
) -> None:
    """Copy an artifact's files, verified, to a local folder."""
    from itool.artifacts.catalogue import copy_artifact, find_artifact  # noqa: PLC0415
    from itool.errors import ConfigError  # noqa: PLC0415

    if not target:  # as of a variable that is not set: a Path of it would be the current folder
        raise ConfigError("FOLDER is empty", remedy="Give a folder; . is the current one")
    store = open_root(root)
    for path in copy_artifact(store, find_artifact(store, name), Path(target), files):
        echo(path)


@app.command("rm")
def rm(name: RemovedArgument, root: RootOption = None) -> None:
    """Remove an artifact; the next `iterate` makes it again."""
    from itool.artifacts.catalogue import find_remains, remove_artifact  # noqa: PLC0415

    store = open_root(root)
    prefix = find_remains(store, name)
    note(f"Removed {prefix}: {remove_artifact(store, prefix)} objects.")


def _list(store: Store, run: str | None, root: str | None) -> list[CatalogueEntry]:
    from itool.artifacts.catalogue import list_artifacts, no_such_artifact  # noqa: PLC0415
    from itool.config import check_run_name  # noqa: PLC0415

    if run is not None:
        check_run_name(run.partition("/")[0])
    entries = list_artifacts(store, run or "")
    if run and not entries and not store.list(run):
        raise no_such_artifact(store, run) if "/" in run.strip("/") else no_such_run(run, root)
    return entries


def _document(entry: CatalogueEntry) -> dict[str, Any]:
    found, document = entry.manifest, {"artifact": entry.prefix, "problem": entry.problem}
    if found is None:
        return document
    return document | {"digest": found.digest, "bytes": found.bytes, "seconds": found.seconds, "ended": found.ended.isoformat()}


def _cells(entry: CatalogueEntry) -> list[str | None]:
    found = entry.manifest
    figures = [found.digest[:12], size(found.bytes), duration(found.seconds)] if found else [None] * 3
    return [entry.prefix, *figures, entry.problem]
