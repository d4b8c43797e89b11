"""ToolACE (`Team-ACE/ToolACE`) and its mirrors: `{"system", "conversations": [{"from", "value"}]}`.

The system text embeds the tools as a JSON array and repeats fixed instructions about the answer's format; the array becomes the candidate
tools, the instructions go (the chat template gives its own), and what else stands there (a date, say) stays as a system message. Every
assistant turn is an example, with the turns before it as its conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from itool.data.sources.record import Asked, Converted, Dropped, answer_text, content_id, convert_each, read_tools, turn_id
from itool.data.sources.rows import Row
from itool.records import Message, Tool

SOURCE = "toolace"
Role = Literal["user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "function_call": "assistant", "tool": "tool",
    "observation": "tool", "function": "tool",
}  # fmt: skip
_INSTRUCTIONS = re.compile(
    r"(You are an expert in composing functions|You are given a question and a set of possible functions"
    r"|Based on the question, you will need"
    r"|If none of the functions? can be used|If the given question lacks|You should only return the function call"
    r"|Here is a list of functions in JSON format|Should you decide to return|Put it in the format of|No other text MUST be included)"
    r"[^\n]*?(?:[.:](?=\s|$)|\n|$)",
    re.IGNORECASE,
)


def convert(rows: Iterator[Row]) -> Iterator[Converted]:
    """Each row's assistant turns as examples."""
    return convert_each(rows, _convert_row)


def _convert_row(row: Row) -> Iterator[Converted]:
    turns = [_read_turn(row, turn) for turn in row.get("conversations", list)]
    named = row.value.get("id") not in (None, "")
    conversation = str(row.value["id"]) if named else content_id(SOURCE, row.value)
    found = find_tools(row.get("system", str) if row.value.get("system") is not None or "tools" not in row.value else "")
    listed = row.value.get("tools")
    if isinstance(listed, str):  # ShareGPT mirrors hold the tools beside the conversation
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError):
            listed = None
    if found is None and listed is None:
        yield Dropped("tools_unparseable")
        return
    values, system = found if found is not None else (listed, row.value.get("system") or "")
    tools = read_tools(row, row.expect(values, list, "the list of tools"))
    messages = [Message(role="system", content=system)] if system else []
    yield from _convert_turns(row, turns, tools, messages, conversation, named=named)


def _convert_turns(
    row: Row, turns: list[tuple[Role, str]], tools: list[Tool], messages: list[Message], conversation: str, *, named: bool
) -> Iterator[Converted]:
    if not any(role == "assistant" for role, _ in turns):
        yield Dropped("no_answer")
    for number, (role, text) in enumerate(turns):
        if role == "assistant":
            asked = Asked(list(messages), tools, turn_id(conversation, number), SOURCE, row.where, named)
            yield answer_text(text, asked)
        messages.append(Message(role=role, content=text))


def _read_turn(row: Row, turn: Any) -> tuple[Role, str]:
    turn = row.expect(turn, dict, "a turn")
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role not in ROLES:
        row.refuse(f"a turn is from {role!r}; known are {', '.join(ROLES)}")
    return ROLES[role], row.expect(turn.get("value", turn.get("content")), str, "a turn's value")


def find_tools(system: str) -> tuple[list[Any], str] | None:
    """The JSON array of tools in a system text, and the text without it and without the fixed instructions; None without an array."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\[(?=\s*[\]{])", system):
        try:
            values, end = decoder.raw_decode(system, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(values, list) and all(isinstance(value, dict) for value in values):
            rest = _INSTRUCTIONS.sub("", system[: match.start()] + "\n" + system[end:])
            lines = [line.strip(" .") for line in rest.splitlines()]
            return values, "\n".join(line for line in lines if line)
    return None
