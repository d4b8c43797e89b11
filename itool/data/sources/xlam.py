"""xLAM (`Salesforce/xlam-function-calling-60k`): `{"id", "query", "answers", "tools"}`, the last two as JSON strings.

Parameters are a flat dictionary with Python's type names (`"List[int], optional"`), not JSON Schema. Single-turn; every query has calls.
Ids are row numbers, so a held-out file has them again: its examples are `xlam-held-out-<id>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from itool.data.sources.record import Asked, Converted, Dropped, answer_calls, convert_each, read_tools
from itool.data.sources.rows import Row
from itool.data.sources.schema import is_optional_type, type_to_schema
from itool.records import Message, ToolCall

SOURCE = "xlam"


def convert(rows: Iterator[Row], *, held_out: bool = False) -> Iterator[Converted]:
    """Each row as one example."""
    prefix = f"{SOURCE}-held-out" if held_out else SOURCE
    return convert_each(rows, lambda row: [_convert_row(row, prefix)])


def _convert_row(row: Row, prefix: str) -> Converted:
    query = row.get("query", str)
    example_id = row.get("id", object)
    listed, answers = _decode(row.get("tools", object)), _decode(row.get("answers", object))
    if not isinstance(listed, list):
        return Dropped("tools_unparseable")
    tools = read_tools(row, [_with_schema(row, tool) for tool in listed])
    if not isinstance(answers, list):
        return Dropped("calls_unparseable")
    try:
        calls = [ToolCall(**answer) for answer in answers]
    except (TypeError, ValidationError):
        return Dropped("calls_unparseable")
    if not calls:
        return Dropped("no_answer")
    return answer_calls(calls, Asked([Message(role="user", content=query)], tools, f"{prefix}-{example_id}", SOURCE, row.where, named=True))


def _decode(value: object) -> object:
    """JSON in a string, as the hub holds it, or the value that a mirror has decoded already; None for what is no JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _with_schema(row: Row, tool: Any) -> dict[str, Any]:
    fields = row.expect(tool, dict, "a tool")
    parameters = fields.get("parameters") or {}
    if not isinstance(parameters, dict) or "properties" in parameters:
        return fields
    return fields | {"parameters": flat_to_schema(parameters)}


def flat_to_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """`{"city": {"type": "str, optional", "description": ..., "default": ...}}` as a JSON Schema object."""
    properties: dict[str, Any] = {}
    required = []
    for name, spec in parameters.items():
        fields = spec if isinstance(spec, dict) else {"type": str(spec)}
        kind = str(fields.get("type", ""))
        properties[name] = type_to_schema(kind) | {key: value for key, value in fields.items() if key != "type" and value not in ("", None)}
        if not is_optional_type(kind) and "default" not in fields:
            required.append(name)
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})
