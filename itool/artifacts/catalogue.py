"""Artifacts as a person handles them: list, find, verify byte by byte, copy out, remove."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from itool.artifacts.commit import fetch, fetch_file, read_manifest
from itool.artifacts.disk import TEMPORARY_SUFFIX, storage_error
from itool.artifacts.manifest import Manifest, NewerArtifact, manifest_key, parse_manifest
from itool.artifacts.resolve import damage, manifest_prefixes
from itool.artifacts.store import Store, delete_tree
from itool.commands import itoolctl
from itool.errors import ArtifactError, InputError


@dataclass(frozen=True)
class CatalogueEntry:
    """An artifact in a store. `problem` is None when every listed file is there with the listed size."""

    prefix: str
    manifest: Manifest | None
    problem: str | None


def list_artifacts(store: Store, run: str = "") -> list[CatalogueEntry]:
    """The artifacts of a run (all runs without one), oldest first; unreadable ones at the end."""
    sizes = store.list(run)
    entries = [_entry(store, prefix, sizes) for prefix in manifest_prefixes(sizes)]
    return sorted(
        entries, key=lambda entry: (entry.manifest is None, entry.manifest.ended.timestamp() if entry.manifest else 0.0, entry.prefix)
    )


def find_artifact(store: Store, name: str) -> str:
    """The one artifact whose prefix begins with `name` (`demo/i1/dpo`, with or without the start of a key), or a shard by its whole name.

    Raises InputError when none or several fit.
    """
    name = name.strip("/")
    if name and store.size(manifest_key(name)) is not None:
        return name
    return _only(_beginning_with(name, manifest_prefixes(store.list(name.partition("/")[0]))), store, name)


def find_remains(store: Store, name: str) -> str:
    """As `find_artifact`, of folders of artifacts and shards with or without a manifest, so that damaged ones can be removed too.

    What is to be removed is named by its stage at least: a run of one artifact has no shorter name for it.
    """
    name = name.strip("/")
    folders = _folders(store.list(name.partition("/")[0]))
    if name in folders:
        return name
    found = sorted(folder for folder in _beginning_with(name, folders) if "/shards/" not in folder)
    if found and name.count("/") < 2:
        raise InputError(f"{name!r} names no stage; it holds {_some(found)}", remedy="Give run/iteration/stage at least, as in demo/i1/dpo")
    return _only(found, store, name)


def no_such_artifact(store: Store, name: str) -> InputError:
    """The error about an artifact that is not there."""
    return InputError(f"there is no artifact {name!r} in {store.root}", remedy=f"See {itoolctl('artifacts ls', store.root)}")


def verify_artifact(store: Store, prefix: str) -> list[str]:
    """Read every file of an artifact and compare size and SHA-256. Returns the problems, one line each; none when it is whole.

    Raises NewerArtifact for one that only a newer version can read.
    """
    try:
        manifest = read_manifest(store, prefix)
    except NewerArtifact:
        raise
    except ArtifactError as error:
        return [str(error)]
    if manifest is None:
        return [f"{manifest_key(prefix)} is missing"]
    problems = []
    with tempfile.TemporaryDirectory(prefix="itool-verify-") as folder:
        for path, entry in manifest.files.items():
            try:
                fetch(store, manifest.file_key(prefix, path), entry.sha256, Path(folder) / "file")
            except ArtifactError as error:
                problems.append(str(error))
    return problems


def copy_artifact(store: Store, prefix: str, target: Path, names: list[str] | None = None) -> Iterator[Path]:
    """Copy an artifact's files (all, or those named; a name that ends in `/` is a folder) below a local folder, verified, one by one.

    Gives each when it is there, whole. Raises InputError before all when a named file does not exist, ArtifactError when one was altered.
    """
    manifest = read_manifest(store, prefix)
    if manifest is None:
        raise no_such_artifact(store, prefix)
    wanted = [path for path in manifest.files if not names or any(_is_named(path, name) for name in names)]
    for name in names or []:
        if not any(_is_named(path, name) for path in wanted):
            raise InputError(f"artifact {prefix} has no {name!r}; it has {', '.join(manifest.files)}")
    for path in wanted:
        whole = target / path
        part = whole.with_name(f"{whole.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        try:
            fetch_file(store, prefix, manifest, path, part).replace(whole)
        except OSError as error:
            raise storage_error(error, whole, "target") from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        yield whole


def remove_artifact(store: Store, prefix: str) -> int:
    """Remove an artifact: the manifest first, so that no one takes the rest for whole. Returns how many objects went."""
    keys = store.list(prefix)
    store.delete(manifest_key(prefix))
    delete_tree(store, prefix)
    return len(keys)


def _is_named(path: str, name: str) -> bool:
    return path == name or (name.endswith("/") and path.startswith(name))


def _only(found: list[str], store: Store, name: str) -> str:
    if not found:
        raise no_such_artifact(store, name)
    if len(found) > 1:
        raise InputError(f"{name!r} fits {len(found)} artifacts: {_some(found)}", remedy="Give the key too")
    return found[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _beginning_with(name: str, prefixes: Iterable[str]) -> list[str]:
    whole_names = name.count("/") < 3  # `demo/i1` is not the start of `demo/i10`
    start = f"{name}/" if whole_names else name
    return [prefix for prefix in prefixes if prefix.startswith(start)]


def _folders(keys: Iterable[str]) -> set[str]:
    parts = [key.split("/") for key in keys if key.count("/") >= 4 and key.split("/")[1].startswith("i")]
    shards = {"/".join(names[:6]) for names in parts if names[4] == "shards" and len(names) > 6}
    return shards | {"/".join(names[:4]) for names in parts}


def _entry(store: Store, prefix: str, sizes: dict[str, int]) -> CatalogueEntry:
    name = manifest_key(prefix)
    try:
        manifest = parse_manifest(store.read(name), f"{store.root}/{name}")
    except ArtifactError as error:
        return CatalogueEntry(prefix, None, str(error))
    problem = damage(manifest, prefix, sizes) and damage(manifest, prefix, store.list(prefix))  # committed while it was listed
    return CatalogueEntry(prefix, manifest, problem)
