"""Parameter types of the data sets, as JSON Schema.

ToolACE writes schemas with Python's words (`dict`, `float`), xLAM and Seal-Tools type names alone (`List[int]`, `str, optional`). What is
not understood becomes a schema without a type, which any value meets.
"""

from __future__ import annotations

import re
from typing import Any

_WORDS = {
    "str": "string", "string": "string", "text": "string", "char": "string", "date": "string", "datetime": "string", "time": "string",
    "int": "integer", "integer": "integer", "long": "integer", "float": "number", "double": "number", "number": "number",
    "bool": "boolean", "boolean": "boolean", "list": "array", "array": "array", "tuple": "array", "set": "array", "sequence": "array",
    "dict": "object", "object": "object", "mapping": "object", "none": "null", "null": "null",
}  # fmt: skip
_GENERIC = re.compile(r"^(\w+)\[(.*)\]$", re.DOTALL)


def normalise_schema(schema: Any) -> Any:
    """A schema with JSON Schema's own type words, at every depth; all else as it was. None and "" stand for no schema."""
    if not isinstance(schema, dict):
        return {} if schema in (None, "") else schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            result |= type_to_schema(value) if isinstance(value, str) else {"type": value}
        elif key == "properties" and isinstance(value, dict):
            result[key] = {name: normalise_schema(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = normalise_schema(value)
        else:
            result[key] = value
    return result


def normalise_parameters(schema: Any) -> dict[str, Any]:
    """A tool's parameters as an object schema, also when the data give none."""
    result = normalise_schema(schema)
    if not isinstance(result, dict) or not result:
        return {"type": "object", "properties": {}}
    result = {"type": "object"} | result | {"properties": result.get("properties") or {}}
    if not result.get("required"):
        result.pop("required", None)
    return result


def type_to_schema(text: str) -> dict[str, Any]:
    """`List[int]` -> an array of integers, `Optional[str]` -> a string. `optional` and defaults in words are left out."""
    word = re.split(r",\s*(?:optional|default)", text, maxsplit=1)[0].strip()
    generic = _GENERIC.match(word)
    if generic is None:
        known = _WORDS.get(word.lower())
        return {"type": known} if known else {}
    outer, inner = generic.group(1).lower(), generic.group(2)
    if outer == "optional":
        return type_to_schema(inner)
    if outer == "union":
        return _union(split_top_level(inner))
    if _WORDS.get(outer) == "array":
        items = type_to_schema(split_top_level(inner)[0])
        return {"type": "array", "items": items} if items else {"type": "array"}
    return {"type": _WORDS[outer]} if outer in _WORDS else {}


def is_optional_type(text: str) -> bool:
    """Whether a type name says that its argument may be left out, as `str, optional` and `int, default 5` do."""
    return "optional" in text.lower() or re.search(r",\s*default", text) is not None


def _union(parts: list[str]) -> dict[str, Any]:
    schemas = [type_to_schema(part) for part in parts if part.lower() not in ("none", "null")]
    if len(schemas) == 1:
        return schemas[0]
    named = [schema.get("type") for schema in schemas]  # a list, where the part is a union itself
    types = list(dict.fromkeys(word for entry in named for word in (entry if isinstance(entry, list) else [entry])))
    return {} if None in types else {"type": types[0] if len(types) == 1 else types}


def split_top_level(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]
