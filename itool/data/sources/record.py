"""What every source gives: examples, or a fixed reason why a piece of data cannot be one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from itool.data.sources.rows import Row
from itool.data.sources.schema import normalise_parameters
from itool.data.toolcall import ToolCallSyntaxError, parse_calls, render_calls
from itool.errors import InputError
from itool.records import Example, Message, Tool, ToolCall

DropReason = Literal["calls_unparseable", "unknown_tool", "tools_unparseable", "no_query", "no_answer", "gave_up"]


@dataclass(frozen=True)
class Dropped:
    """A piece of data that became no example."""

    reason: DropReason


@dataclass(frozen=True)
class Found:
    """An example and the place in the data that it comes from. `named`: its id is the data's own, not made from its content."""

    example: Example
    where: str
    named: bool


Converted = Found | Dropped


def convert_each(rows: Iterable[Row], convert_row: Callable[[Row], Iterable[Converted]]) -> Iterator[Converted]:
    """What a source makes of every row, as later stages read it: through JSON. Raises InputError for a row that cannot go through it."""
    for row in rows:
        with row.blamed():
            converted = [_through_json(item) if isinstance(item, Found) else item for item in convert_row(row)]
        yield from converted


def _through_json(found: Found) -> Found:
    return replace(found, example=Example.model_validate_json(found.example.model_dump_json()))


def read_tool(row: Row, value: Any, what: str) -> Tool:
    """A tool from `{"name", "description", "parameters"}`, also wrapped as `{"type": "function", "function": ...}`.

    Raises InputError for one without a name: nothing could call it.
    """
    fields = row.expect(value, dict, what)
    fields = row.expect(fields["function"], dict, what) if "function" in fields and "name" not in fields else fields
    name = fields.get("name")
    if not isinstance(name, str) or not name.strip():
        row.refuse(f"{what} has no name")
    description = fields.get("description") or ""
    parameters = fields.get("parameters")
    return Tool(name=name.strip(), description=str(description).strip(), parameters=normalise_parameters(parameters))


def read_tools(row: Row, values: Sequence[Any]) -> list[Tool]:
    """Candidate tools in order; of two with one name the first, since a call could mean neither."""
    tools = [read_tool(row, value, f"tool {number}") for number, value in enumerate(values, start=1)]
    return list({tool.name: tool for tool in reversed(tools)}.values())[::-1]


@dataclass(frozen=True)
class Asked:
    """What comes before an answer, the id of the example that it makes, and where it stands."""

    messages: list[Message]
    tools: list[Tool]
    example_id: str
    source: str
    where: str
    named: bool = False


def answer_text(text: str, asked: Asked) -> Converted:
    """An example whose answer stands in the data as text, in the response syntax or as prose."""
    text = text.strip()
    if not text:
        return Dropped("no_answer")
    try:
        return _find(parse_calls(text, asked.tools), text, asked)
    except ToolCallSyntaxError:
        return Dropped("calls_unparseable")


def answer_calls(calls: Sequence[ToolCall], asked: Asked) -> Converted:
    """An example whose answer stands in the data as structured calls; the response is their rendering."""
    try:
        text = render_calls(calls)
        if parse_calls(text, asked.tools) == list(calls):
            return _find(calls, text, asked)
    except InputError:
        pass
    return Dropped("calls_unparseable")


def _find(calls: Sequence[ToolCall], text: str, asked: Asked) -> Converted:
    if not any(message.role == "user" for message in asked.messages):
        return Dropped("no_query")
    if {call.name for call in calls} - {tool.name for tool in asked.tools}:
        return Dropped("unknown_tool")
    example = Example(
        id=asked.example_id, messages=asked.messages, tools=asked.tools, calls=list(calls), response=text, source=asked.source
    )
    return Found(example, asked.where, asked.named)


def content_id(source: str, value: Any) -> str:
    """An id for data that have none: a digest of the content, so that inserting a row never renames another."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return f"{source}-{hashlib.blake2b(canonical.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def turn_id(conversation: str, turn: int) -> str:
    """The id of one answered turn: `split.py` keeps the turns of a conversation together by what stands before `#turn`."""
    return f"{conversation}#turn{turn}"
