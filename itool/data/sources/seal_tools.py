"""Seal-Tools: `{"id", "query", "calling": [{"api", "parameters", "responses"}]}`, and a pool of tools beside it.

The data name the right tools only; the rest of a candidate list is drawn from the pool. Every draw comes from a hash of the example's id,
so the list of an example depends on nothing else than that id, the pool and the settings. Arguments may refer to the result of an earlier
call (`API_call_0`); they stay strings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from itool.config import DataConfig
from itool.data.sources.record import Asked, Converted, Dropped, answer_calls, answer_text, convert_each
from itool.data.sources.rows import Row, read_rows
from itool.data.sources.xlam import flat_to_schema
from itool.errors import InputError
from itool.records import Message, Tool, ToolCall

SOURCE = "seal_tools"
NO_TOOL_ANSWER = "None of the functions can be used for this request."


@dataclass(frozen=True)
class Pool:
    """Tools by name, in the file's order, with the field of work of each (`Sports/Basketball`), and the file."""

    path: str | None = None
    tools: dict[str, Tool] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    by_field: dict[str, list[str]] = field(default_factory=dict)

    def add(self, tool: Tool, field_name: str) -> None:
        """Put a tool under its field and under the field's first part."""
        self.tools[tool.name] = tool
        self.fields[tool.name] = field_name
        for part in dict.fromkeys((field_name, field_name.partition("/")[0])):
            self.by_field.setdefault(part, []).append(tool.name)


def find_pool(config: DataConfig) -> str:
    """The pool's file. Raises InputError when there is none."""
    pool = config.pool_file
    if not pool.is_file():
        problem = "is a folder, not a file" if pool.is_dir() else "does not exist"
        beside = "" if config.tool_pool_path else f", or correct data.path = {config.path}, beside which it is looked for"
        raise InputError(f"tool pool {pool} {problem}", remedy=f"Set data.tool_pool_path to Seal-Tools' tool.jsonl{beside}")
    return str(pool)


def read_pool(path: str) -> Pool:
    """Every tool that can be called. Raises InputError for a tool without name or with another's name."""
    pool = Pool(path)
    for row in read_rows(path):
        with row.blamed():
            tool = _read_pool_tool(row)
        if tool.name in pool.tools:
            row.refuse(f"tool {tool.name!r} stands in the pool already")
        pool.add(tool, row.expect(row.value.get("field") or "", str, "field 'field'"))
    return pool


def _read_pool_tool(row: Row) -> Tool:
    name = row.get("api_name", str).strip()
    if not name:
        row.refuse("a tool has no name")
    parameters = flat_to_schema(row.get("parameters", dict))
    parameters["properties"] = {key: _shorten(schema) for key, schema in parameters["properties"].items()}
    parameters.pop("required", None)
    if required := row.expect(row.value.get("required", []), list, "field 'required'"):
        parameters["required"] = required
    description = row.expect(row.value.get("api_description") or "", str, "field 'api_description'")
    return Tool(name=name, description=description, parameters=parameters)


def _shorten(schema: dict[str, object]) -> dict[str, object]:
    """Type and description; the few other keys (`unit`, `examples`) are not the same from tool to tool."""
    return {key: schema[key] for key in ("type", "description") if key in schema}


def convert(rows: Iterator[Row], pool: Pool, config: DataConfig) -> Iterator[Converted]:
    """Each row as one example."""
    return convert_each(rows, lambda row: [_convert_row(row, pool, config)])


def _convert_row(row: Row, pool: Pool, config: DataConfig) -> Converted:
    example_id, query = row.get("id", str), row.get("query", str)
    calls = [_read_call(row, value) for value in row.get("calling", list)]
    if not calls:
        return Dropped("no_answer")
    right = list(dict.fromkeys(call.name for call in calls))
    if any(name not in pool.tools for name in right):
        return Dropped("unknown_tool")
    rng = random.Random(f"seal_tools:{example_id}")
    withheld = rng.random() < config.no_call_fraction
    names = draw_candidates(pool, right, config.candidate_tools, rng)
    withheld = withheld and len(names) > len(right)  # without a distractor no tool would be left to decline
    tools = [pool.tools[name] for name in names if not (withheld and name in right)]
    asked = Asked([Message(role="user", content=query)], tools, example_id, SOURCE, row.where, named=True)
    return answer_text(NO_TOOL_ANSWER, asked) if withheld else answer_calls(calls, asked)


def _read_call(row: Row, value: object) -> ToolCall:
    fields = row.expect(value, dict, "a call")
    name = fields.get("api")
    if not isinstance(name, str) or not name.strip():
        row.refuse("a call has no tool's name")
    return ToolCall(name=name.strip(), arguments=row.expect(fields.get("parameters"), dict, f"the parameters of {name}"))


def draw_candidates(pool: Pool, right: Sequence[str], longest: int, rng: random.Random) -> list[str]:
    """The right tools and distractors, shuffled: from one distractor up to `longest` tools in all, lengths equally likely.

    No distractor where the right tools alone are as many.

    Every other distractor is a near one: of the same field as a right tool, then of the same broad field.
    """
    room = min(longest, len(pool.tools)) - len(right)
    wanted = rng.randint(1, room) if room > 0 else 0
    near = _near_tools(pool, right, wanted, rng)
    names = list(pool.tools)
    chosen = dict.fromkeys(right)
    while len(chosen) < len(right) + wanted:
        number = len(chosen) - len(right)
        chosen[near.pop() if near and number % 2 == 0 else rng.choice(names)] = None
    drawn = list(chosen)
    rng.shuffle(drawn)
    return drawn


def _near_tools(pool: Pool, right: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """At most `count` tools of the right ones' fields and as many of their broad fields, the nearest last."""
    same = {name for tool in right for name in pool.by_field[pool.fields[tool]]} - set(right)
    broad = {name for tool in right for name in pool.by_field[pool.fields[tool].partition("/")[0]]} - same - set(right)
    return [name for names in (broad, same) for name in rng.sample(sorted(names), min(count, len(names)))]
