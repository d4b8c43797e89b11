"""docs/configuration.md: every setting with its values, default and meaning. `python -m itool.config_reference` prints it.

A test fails when the file is stale; `make reference` writes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from itool.config import RunConfig

HEAD = """\
# Configuration

Written by `make reference` from `itool/config.py` and `itool/config_kubernetes.py`; edit there.

One YAML file describes a run, `--set section.key=value` overrides it, and the chart takes the same document under `run:`. Text that looks
like a number needs quotes (`run: "17"`, `--set 'run="17"'`, Helm's `--set-string run.run=17`). What is left out has its default. Paths
count from the working directory of the command, not from the file. `itoolctl schema` prints the same as a JSON Schema; `itoolctl
stages -o json` says which stage reads what, and so what a change runs again.
"""
# Bounds above 1 only catch slips of the pen.
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text", "null": "null", "object": "mapping"}


def reference() -> str:
    """The page, in Markdown."""
    return HEAD + "".join(f"\n{part}" for part in _section(RunConfig, ()))


def _section(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """A table of a section's own settings, then the sections in it."""
    properties = model.model_json_schema()["properties"]
    defaults = model()
    rows: list[str] = []
    inner: list[tuple[type[BaseModel], tuple[str, ...]]] = []
    for name, field in model.model_fields.items():
        value = getattr(defaults, name)
        if isinstance(value, BaseModel):
            inner.append((type(value), (*path, name)))
        else:
            default = json.dumps(field.get_default(call_default_factory=True))
            rows.append(f"| `{name}` | {_values(properties[name])} | `{default}` | {field.description} |")
    if path:
        yield f"## {'.'.join(path)}\n\n{(model.__doc__ or '').strip()}\n"
    yield "\n".join(["| key | values | default | what |", "|---|---|---|---|", *rows]) + "\n"
    for kind, key in inner:
        yield from _section(kind, key)


def _values(schema: dict[str, Any]) -> str:
    """What a setting may be, in words, from its JSON Schema."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_values(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_values(schema['items'])}"
    if "$ref" in schema:
        return "section"
    bounds = [f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if schema.get(key, 2) <= 1]
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return ", ".join([" or ".join(_TYPES[kind] for kind in kinds), *bounds])


if __name__ == "__main__":
    sys.stdout.write(reference())
