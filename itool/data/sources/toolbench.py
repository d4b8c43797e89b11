"""ToolBench (`toolllama_G123_dfs_train.json`): ReAct text, `Thought: / Action: / Action Input: {json}`, ended by `Action: Finish`.

Tools are a Python literal in the system text. Every assistant turn is an example; an action becomes a call in the response syntax (the
thought is left out), `Finish` with a final answer becomes that answer, and a turn that gives up is dropped. Rows of one query repeat each
other's beginnings; such turns are read once.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from itool.data.sources.record import Asked, Converted, Dropped, answer_calls, answer_text, content_id, convert_each, read_tools, turn_id
from itool.data.sources.rows import Row
from itool.data.sources.toolace import ROLES
from itool.data.toolcall import render_calls
from itool.errors import InputError
from itool.records import Message, Tool, ToolCall

SOURCE = "toolbench"
FINISH = "Finish"
_ACTION = re.compile(r"Action:[ \t]*(?P<name>[^\n]*)\n\s*+Action Input:\s*(?P<input>.*)", re.DOTALL)


def convert(rows: Iterator[Row]) -> Iterator[Converted]:
    """Each row's assistant turns as examples."""
    return convert_each(rows, _convert_row)


def _convert_row(row: Row) -> Iterator[Converted]:
    turns = [_read_turn(row, turn) for turn in row.get("conversations", list)]
    listed = find_tools(next((text for role, text in turns if role == "system"), ""))
    if listed is None:
        yield Dropped("tools_unparseable")
        return
    tools = [tool for tool in read_tools(row, listed) if tool.name != FINISH]
    yield from _convert_turns(row, turns, tools)


def _convert_turns(row: Row, turns: list[tuple[str, str]], tools: list[Tool]) -> Iterator[Converted]:
    messages: list[Message] = []
    opening = [text for role, text in turns if role in ("system", "user")][:2]
    conversation = content_id(SOURCE, opening)
    if not any(role == "assistant" for role, _ in turns):
        yield Dropped("no_answer")
    readable = True
    for role, text in turns:
        if role == "system":
            continue
        if role != "assistant":
            messages.append(Message(role="tool" if role == "tool" else "user", content=text.strip()))
            continue
        call = read_action(text)
        readable = readable and call is not None  # what follows depends on a call that cannot be read
        # Branches of one search share the conversation; its turns are told apart by what was said before and what is answered.
        number = int(content_id("", [[message.content for message in messages], text])[1:], 16)
        asked = Asked(list(messages), tools, turn_id(conversation, number), SOURCE, row.where)
        yield _convert_action(call if readable else None, asked)
        if call is not None and call.name == FINISH:
            return
        messages.append(Message(role="assistant", content=render_calls([call]) if call else text))


def _convert_action(call: ToolCall | None, asked: Asked) -> Converted:
    if call is None:
        return Dropped("calls_unparseable")
    if call.name != FINISH:
        return answer_calls([call], asked)
    answer = call.arguments.get("final_answer")
    return answer_text(answer, asked) if isinstance(answer, str) and answer.strip() else Dropped("gave_up")


def _read_turn(row: Row, turn: Any) -> tuple[str, str]:
    turn = row.expect(turn, dict, "a turn")
    role = turn.get("from")
    if not isinstance(role, str) or (role != "system" and role not in ROLES):
        row.refuse(f"a turn is from {role!r}; known are system, {', '.join(ROLES)}")
    return ROLES.get(role, "system"), row.expect(turn.get("value"), str, "a turn's value")


def read_action(text: str) -> ToolCall | None:
    """The call of a ReAct turn; None when there is none, or its input is no JSON object or holds what JSON has no literal for."""
    match = _ACTION.search(text)
    if match is None or not match.group("name").strip():
        return None
    try:
        arguments, _ = json.JSONDecoder().raw_decode(match.group("input").strip() or "{}")
        call = ToolCall(name=match.group("name").strip(), arguments=arguments)
        render_calls([call])
    except (ValueError, RecursionError, InputError):
        return None
    return call


def find_tools(system: str) -> list[Any] | None:
    """The Python literal after `the following APIs:`; None without a readable one."""
    start = system.find("[{", max(system.rfind("following APIs:"), 0))
    if start < 0:
        return None
    try:
        values = ast.literal_eval(system[start : system.rfind("]") + 1])
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return values if isinstance(values, list) else None
