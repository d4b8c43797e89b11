"""Rows of a data set with their place in it, from JSON lines, a JSON array, a folder of either, or the Hugging Face hub.

A structural fault - broken JSON, a missing field, a wrong type - is an InputError that names file and line: the file is not what its user
thinks it is. What a row *says* may be unusable as well; that is the sources' business and is counted instead.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
from pydantic import ValidationError

from itool.artifacts.disk import storage_error
from itool.errors import DependencyError, InputError, ItoolError
from itool.paths import absolute_path, local_path

T = TypeVar("T")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_SPACE_OR_COMMA = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Row:
    """One JSON object and where it stands, `file:line`."""

    value: dict[str, Any]
    where: str

    def get(self, name: str, kind: type[T]) -> T:
        """A field that must be there. Raises InputError with file, line, and what stands there instead."""
        if name not in self.value:
            raise InputError(f"{self.where}: field {name!r} is missing; the row has {', '.join(sorted(self.value)) or 'no field'}")
        return self.expect(self.value[name], kind, f"field {name!r}")

    def expect(self, value: Any, kind: type[T], what: str) -> T:
        """The value, if it has the type. Raises InputError otherwise."""
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise InputError(f"{self.where}: {what} is {_name_type(value)}, not {_TYPE_NAMES[kind]}")
        return value

    def refuse(self, problem: str) -> NoReturn:
        """Raise InputError about this row."""
        raise InputError(f"{self.where}: {problem}")

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """What goes wrong with this row in a way that no check has foreseen is an InputError about it: another try would end the same."""
        try:
            yield
        except ItoolError:
            raise
        except RecursionError:
            self.refuse("the row is nested too deeply")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            self.refuse(f"the row cannot be used: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        except (TypeError, AttributeError, ValueError) as error:
            self.refuse(f"the row cannot be used: {error}")


_TYPE_NAMES: dict[type, str] = {str: "a string", list: "a list", dict: "an object", int: "a whole number"}


def _name_type(value: Any) -> str:
    return "null" if value is None else _TYPE_NAMES.get(type(value), type(value).__name__)


def read_rows(path: str, *, excluding: Sequence[str | None] = ()) -> Iterator[Row]:
    """The rows of a file, of every .json and .jsonl file of a folder (sorted, without the excluded ones), or of a hub data set.

    Raises InputError for what is not there or broken, DependencyError when the hub does not answer.
    """
    local = local_path(path)
    if local.is_dir():
        excluded = {local_path(other).resolve() for other in excluding if other}
        files = [file for file in sorted(local.iterdir()) if file.suffix in (".json", ".jsonl") and file.resolve() not in excluded]
        if not files:
            raise InputError(f"data folder {path} holds no .json or .jsonl file", remedy="Set data.path to the data")
        for file in files:
            yield from _read_file(file)
    elif local.is_file():
        yield from _read_file(local)
    elif is_hub_id(path):
        yield from _read_hub(path)
    else:
        raise InputError(f"data file {absolute_path(local)} does not exist", remedy="Set data.path to a file, a folder or a hub id")


def is_hub_id(path: str) -> bool:
    """Whether a path that is not here names a data set on the hub; beside a folder of that owner's name it is a misspelt one."""
    local = Path(path)
    return bool(_HUB_ID.match(path)) and local.suffix not in (".json", ".jsonl") and not local.parent.is_dir()


def _read_file(path: Path) -> Iterator[Row]:
    """A file that begins with `[` is one JSON array, any other JSON lines, whatever its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
            file.seek(0)
            if start == b"[":
                yield from _read_array(_decode(file.read(), path), path)
            else:
                for number, data in enumerate(file, start=1):
                    line = _decode(data, path, number)
                    if line.strip():
                        yield _to_row(_parse(line, f"{path}:{number}"), f"{path}:{number}", line)
    except OSError as error:
        raise storage_error(error, path, "reading") from None


def _decode(data: bytes, path: Path, line: int = 1) -> str:
    """Bytes that begin with a line, as text."""
    try:
        return (data.removeprefix(codecs.BOM_UTF8) if line == 1 else data).decode()
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        place, column = line + before.count(b"\n"), error.start - before.rfind(b"\n")
        raise InputError(
            f"{path}:{place}: the text is not UTF-8: {error.reason} 0x{error.object[error.start]:02x} at byte {column} of the line",
            remedy="Convert the file to UTF-8",
        ) from None


def _read_array(text: str, path: Path) -> Iterator[Row]:
    """Elements of a JSON array one by one, so that each knows its line."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    position = text.index("[") + 1
    line = 1 + text.count("\n", 0, position)
    while True:
        start = _SPACE_OR_COMMA.match(text, position).end()  # type: ignore[union-attr]  # matches the empty string
        line += text.count("\n", position, start)
        if text.startswith("]", start):
            end = _SPACE_OR_COMMA.match(text, start + 1).end()  # type: ignore[union-attr]
            if end < len(text):
                raise InputError(f"{path}:{line + text.count(chr(10), start, end)}: broken JSON: text follows the array")
            return
        try:
            value, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            place = line + text.count("\n", start, error.pos) if isinstance(error, json.JSONDecodeError) else line
            raise InputError(f"{path}:{place}: broken JSON: {_explain(error)}") from None
        yield _to_row(value, f"{path}:{line}", text[start:position])
        line += text.count("\n", start, position)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text.rstrip("\r\n"), parse_constant=_refuse_constant)  # with its end a line that is cut off breaks in the next
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: broken JSON: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _to_row(value: Any, where: str, text: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{where}: the row is {_name_type(value)}, not an object")
    row = Row(value, where)
    if "\\u" in text:  # only an escape can write half a surrogate pair, which nothing can store
        with row.blamed():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                row.refuse(f"the text holds {error.object[error.start]!r}, half of a character, which UTF-8 cannot write")
    return row


def _read_hub(path: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset  # noqa: PLC0415 - slow to import, and only hub data need it
        from datasets.exceptions import FileNotFoundDatasetsError  # noqa: PLC0415
    except ImportError:
        raise DependencyError(
            f"data set {path} needs the `datasets` package", remedy="`make install-train`, or `pip install -e '.[train]'` in a checkout"
        ) from None
    try:
        rows = load_dataset(path, split="train")
    except (FileNotFoundDatasetsError, ValueError, RuntimeError) as error:  # not there, gated, no such split, a script: no retry helps
        first = str(error).partition("\n")[0]
        raise InputError(f"data set {path} cannot be used: {first}", remedy="Check the name, or log in with HF_TOKEN") from error
    except (OSError, httpx.HTTPError) as error:
        first = str(error).partition("\n")[0]
        raise DependencyError(
            f"data set {path} cannot be loaded from the hub: {first}", remedy="Go online, or download it and set data.path to its files"
        ) from error
    for number, value in enumerate(rows, start=1):
        yield Row({name: _drop_nulls(column, rows.features[name]) for name, column in value.items()}, f"{path}:{number}")


def _drop_nulls(value: Any, feature: Any) -> Any:
    """A column's value without the nulls of its objects: Arrow gives all of them the keys of all, null where a row has none.

    A column of type Json keeps its nulls; there they stand in the data.
    """
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: _drop_nulls(inner, feature[key]) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_drop_nulls(inner, feature.feature) for inner in value]
    return value
