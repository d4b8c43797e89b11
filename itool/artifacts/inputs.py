"""What a stage reads: input files by role, each checked against its manifest before anyone sees it, and JSONL records from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from itool.artifacts.commit import check_file, fetch, to_be_removed
from itool.artifacts.disk import cache_folder
from itool.artifacts.manifest import FileEntry, Manifest
from itool.artifacts.resolve import Resolution
from itool.artifacts.store import Store
from itool.errors import ArtifactError, InputError, ItoolError

RecordT = TypeVar("RecordT", bound=BaseModel)

OTHER_VERSION = "Another version of itool wrote it: remove its artifact and run again"
"""What is read here was checked by its digest: the bytes are those that were written."""


def read_records(path: Path, record: type[RecordT]) -> list[RecordT]:
    """Read a JSONL file of an artifact or a checkpoint. Raises InputError with file and line number."""
    try:
        return [_parse(line, record, f"{path}:{number}") for number, line in numbered_lines(path)]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", remedy=OTHER_VERSION) from None


def write_records(path: Path, records: Iterable[BaseModel | Mapping[str, Any]]) -> None:
    """Write a JSONL file, one record per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{_as_json(record)}\n" for record in records)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number."""
    with path.open(encoding="utf-8") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _as_json(record: BaseModel | Mapping[str, Any]) -> str:
    return record.model_dump_json() if isinstance(record, BaseModel) else json.dumps(record, ensure_ascii=False, allow_nan=False)


def _parse(line: str, record: type[RecordT], place: str) -> RecordT:
    try:
        return record.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = f"{place} is no {record.__name__}: {field + ': ' if field else ''}{first['msg']}"
        raise InputError(problem, remedy=OTHER_VERSION) from None


class InputFiles:
    """The input artifacts of a stage by role. A file is verified once per process, when it is first asked for."""

    def __init__(self, store: Store, inputs: Mapping[str, Resolution]) -> None:
        self._store = store
        self._inputs = inputs
        self._verified: set[str] = set()

    def path(self, role: str, name: str, *, except_suffix: str = "") -> Path:
        """Local path of a file, or of a folder when `name` ends in a slash (`""`: the whole artifact).

        Files of a folder that end in `except_suffix` are not fetched.
        Raises ArtifactError when a file was altered or is gone, InputError when the artifact has no such file.
        """
        source = self._source(role)
        for path, entry in self._matching(source, name).items():
            if not (except_suffix and path.endswith(except_suffix)):
                self._provide(source, path, entry)
        return self._folder(source) / name

    def manifest(self, role: str) -> Manifest:
        """Where an input came from."""
        return _finished(self._source(role))

    def _source(self, role: str) -> Resolution:
        if role not in self._inputs:
            raise ItoolError(f"this stage reads no input {role!r}; it reads {', '.join(self._inputs) or 'nothing'}")
        return self._inputs[role]

    def _matching(self, source: Resolution, name: str) -> dict[str, FileEntry]:
        files = _finished(source).files
        folder = name.endswith("/") or not name
        found = {path: entry for path, entry in files.items() if (path.startswith(name) if folder else path == name)}
        if not found:
            raise InputError(f"artifact {source.prefix} has no {name!r}; it has {', '.join(files)}")
        return found

    def _provide(self, source: Resolution, path: str, entry: FileEntry) -> None:
        """Make sure that a file lies, unaltered, in the input's local folder."""
        key = _finished(source).file_key(str(source.prefix), path)
        if key in self._verified:
            return
        local = self._folder(source) / path
        try:
            if self._store.local_path(key) is None:
                if not _is_intact(local, entry):
                    fetch(self._store, key, entry.sha256, local)
            else:
                check_file(local, entry.sha256, str(local))
        except ArtifactError as error:
            raise to_be_removed(error, self._store, str(source.prefix)) from None
        self._verified.add(key)

    def _folder(self, source: Resolution) -> Path:
        """Where an input's files lie on this machine: in the store itself, or in the cache under the content digest."""
        manifest = _finished(source)
        stored = self._store.local_path(manifest.data_folder(str(source.prefix)))
        return stored or cache_folder() / manifest.digest


def _finished(source: Resolution) -> Manifest:
    if source.manifest is None:
        raise ItoolError(f"input {source.stage} is not done")
    return source.manifest


def _is_intact(path: Path, entry: FileEntry) -> bool:
    try:
        check_file(path, entry.sha256, str(path))
    except (OSError, ArtifactError):
        return False
    return True
