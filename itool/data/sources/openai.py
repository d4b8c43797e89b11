"""OpenAI-style `messages` + `tools` with `tool_calls`, as JSON lines: what most users have of their own.

Every assistant turn is an example, unless its `weight` is 0. Its calls become the response syntax; earlier calls stand so in the
conversation. An `id` on the row is kept and must be unique; without one it is made from the content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from itool.data.sources.record import Asked, Converted, Dropped, answer_calls, answer_text, content_id, convert_each, read_tools, turn_id
from itool.data.sources.rows import Row
from itool.data.toolcall import render_calls
from itool.errors import InputError
from itool.records import Message, Tool, ToolCall

SOURCE = "openai"
Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool",
}  # fmt: skip


def convert(rows: Iterator[Row]) -> Iterator[Converted]:
    """Each row's assistant turns as examples."""
    return convert_each(rows, _convert_row)


def _convert_row(row: Row) -> Iterator[Converted]:
    turns = [row.expect(turn, dict, f"message {number}") for number, turn in enumerate(row.get("messages", list), start=1)]
    _refuse_older_form(row, turns)
    tools = read_tools(row, row.expect(row.value.get("tools") or [], list, "field 'tools'"))
    named = row.value.get("id") is not None
    if row.value.get("id") == "":
        row.refuse("field 'id' is empty; give it a value or leave it out")
    conversation = str(row.value["id"]) if named else content_id(SOURCE, row.value)
    answers = [number for number, turn in enumerate(turns) if turn.get("role") == "assistant"]
    if not answers:
        yield Dropped("no_answer")
    yield from _convert_turns(row, turns, tools, conversation, named=named, single=len(answers) == 1)


def _refuse_older_form(row: Row, turns: list[dict[str, Any]]) -> None:
    """What stood for `tools` and `tool_calls` before these. Left unread, calls would turn into empty answers without a sign."""
    if row.value.get("functions") and not row.value.get("tools"):
        row.refuse("field 'functions' is the older form; write the tools as 'tools'")
    for number, turn in enumerate(turns, start=1):
        if turn.get("function_call") and not turn.get("tool_calls"):
            row.refuse(f"message {number} has a 'function_call', the older form; write it as 'tool_calls'")


def _convert_turns(
    row: Row, turns: list[dict[str, Any]], tools: list[Tool], conversation: str, *, named: bool, single: bool
) -> Iterator[Converted]:
    messages: list[Message] = []
    readable = True
    for number, turn in enumerate(turns):
        role, text = _read_role(row, turn), _read_content(row, turn)
        calls = _read_calls(row, turn) if turn.get("tool_calls") else []
        readable = readable and calls is not None  # what follows depends on a call that cannot be read
        if role == "assistant" and turn.get("weight") != 0:
            example_id = conversation if single else turn_id(conversation, number)
            asked = Asked(list(messages), tools, example_id, SOURCE, row.where, named)
            yield _convert_answer(calls if readable else None, text, asked)
        messages.append(Message(role=role, content=render_calls(calls) if calls else text))


def _convert_answer(calls: list[ToolCall] | None, text: str, asked: Asked) -> Converted:
    if calls is None:
        return Dropped("calls_unparseable")
    return answer_calls(calls, asked) if calls else answer_text(text, asked)


def _read_role(row: Row, turn: dict[str, Any]) -> Role:
    role = turn.get("role")
    if not isinstance(role, str) or role not in ROLES:
        row.refuse(f"a message has role {role!r}; known are {', '.join(ROLES)}")
    return ROLES[role]


def _read_content(row: Row, turn: dict[str, Any]) -> str:
    """The text of a message: a string, null beside tool calls, or a list of text parts."""
    content = turn.get("content")
    if isinstance(content, list):
        return "".join(row.expect(row.expect(part, dict, "a content part").get("text"), str, "a content part's text") for part in content)
    return "" if content is None else row.expect(content, str, "a message's content")


def _read_calls(row: Row, turn: dict[str, Any]) -> list[ToolCall] | None:
    """The calls of a message; None when one's arguments are no JSON object, or hold what JSON has no literal for (NaN)."""
    calls = []
    for value in row.expect(turn["tool_calls"], list, "field 'tool_calls'"):
        fields = row.expect(value, dict, "a tool call")
        function = row.expect(fields.get("function", fields), dict, "a tool call's function")
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            row.refuse("a tool call has no name")
        try:
            arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            return None
        if not isinstance(arguments, dict | None):
            return None
        calls.append(ToolCall(name=name, arguments=arguments or {}))
    try:
        render_calls(calls)
    except InputError:
        return None
    return calls
