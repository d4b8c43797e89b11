"""Every format from a minimal example, what is dropped and why, and one clear line for every structural fault."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

from itool.config import DataConfig
from itool.data.sources.load import Loaded, load_examples
from itool.data.sources.schema import normalise_parameters, type_to_schema
from itool.data.sources.toolbench import read_action
from itool.errors import InputError, StorageError
from itool.records import ToolCall

TRENDS = {
    "name": "Market Trends API",
    "description": "Trends.",
    "parameters": {"type": "dict", "properties": {"trend_type": {"type": "string"}, "top": {"type": "int"}}, "required": ["trend_type"]},
    "required": None,
}


def write(path: Path, rows: list[Any], *, array: bool = False) -> str:
    text = json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(source: str, tmp_path: Path, rows: list[Any], **settings: Any) -> Loaded:
    return load_examples(DataConfig.model_validate({"source": source, "path": write(tmp_path / "data.jsonl", rows), **settings}))


# --- ToolACE ---

BOILERPLATE = """\
You are an expert in composing functions. You are given a question and a set of possible functions. \
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the functions can be used, point it out. If the given question lacks the parameters required by the function, also point it out.
You should only return the function call in tools call sections.
Today is 2024-05-01.
Here is a list of functions in JSON format that you can invoke:
{tools}.\x20
Should you decide to return the function call(s).\x20
Put it in the format of [func1(params_name=params_value, params_name2=params_value2...), func2(params)]

NO other text MUST be included."""


def toolace(*turns: tuple[str, str], tools: Any = (TRENDS,)) -> dict[str, Any]:
    system = BOILERPLATE.replace("{tools}", json.dumps(list(tools)))
    return {"system": system, "conversations": [{"from": role, "value": value} for role, value in turns]}


def test_toolace_gives_every_assistant_turn(tmp_path: Path) -> None:
    answer = "[Market Trends API(trend_type='X', top=3)]"
    row = toolace(
        ("user", "Trends?"), ("assistant", answer), ("tool", '{"a": 1}'), ("assistant", "X rises."), ("user", "Joke?"), ("assistant", "No.")
    )
    first, second, third = load("toolace", tmp_path, [row]).examples
    assert first.response == answer
    assert [(c.name, c.arguments) for c in first.calls] == [("Market Trends API", {"trend_type": "X", "top": 3})]
    assert first.tools[0].parameters == {
        "type": "object",
        "properties": {"trend_type": {"type": "string"}, "top": {"type": "integer"}},
        "required": ["trend_type"],
    }
    assert [(m.role, m.content) for m in first.messages] == [("system", "Today is 2024-05-01"), ("user", "Trends?")]
    assert (second.stratum, third.stratum, third.response) == ("text", "text", "No.")
    assert [m.role for m in third.messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert first.id.partition("#")[0] == third.id.partition("#")[0]


def test_toolace_mirrors_name_their_turns_otherwise(tmp_path: Path) -> None:
    row = toolace(("human", "q"), ("function_call", "[Market Trends API()]"), ("observation", "r"), ("gpt", "done"))
    assert [e.stratum for e in load("toolace", tmp_path, [row]).examples] == ["calls", "text"]


def test_an_empty_list_as_toolace_writes_it_is_an_answer_without_calls(tmp_path: Path) -> None:
    (example,) = load("toolace", tmp_path, [toolace(("user", "q"), ("assistant", "[]"))]).examples
    assert (example.stratum, example.response) == ("text", "[]")


def test_toolace_counts_what_it_cannot_use(tmp_path: Path) -> None:
    rows = [
        toolace(("user", "q"), ("assistant", "Fine.")),
        toolace(("user", "q"), ("assistant", "[Market Trends API('X')]")),
        toolace(("user", "q"), ("assistant", "[Other(a=1)]")),
        toolace(("assistant", "Hello.")),
        toolace(("user", "q")),
        toolace(("user", "q"), ("assistant", " ")),
        {"system": "No tools here [1, 2].", "conversations": []},
    ]
    loaded = load("toolace", tmp_path, rows)
    assert len(loaded.examples) == 1
    assert loaded.dropped == {"calls_unparseable": 1, "unknown_tool": 1, "no_query": 1, "no_answer": 2, "tools_unparseable": 1}
    assert loaded.incoming == 7


def test_toolace_tools_that_are_nested_without_end_are_counted(tmp_path: Path) -> None:
    endless = {"system": "", "tools": "[" * 100_000, "conversations": [{"from": "user", "value": "q"}]}
    loaded = load("toolace", tmp_path, [toolace(("user", "q"), ("assistant", "Fine.")), endless])
    assert loaded.dropped == {"tools_unparseable": 1}


def test_inserting_a_row_renames_no_other_and_repetitions_are_read_once(tmp_path: Path) -> None:
    one, two = toolace(("user", "a"), ("assistant", "A")), toolace(("user", "b"), ("assistant", "B"))
    alone = load("toolace", tmp_path, [two]).examples
    both = load("toolace", tmp_path, [one, two, two])
    assert both.examples[1:] == alone
    assert both.repeated == 1


@pytest.mark.parametrize("missing", [None, ""])
def test_a_toolace_row_whose_id_says_nothing_has_none(tmp_path: Path, missing: str | None) -> None:
    row = {"id": missing, **toolace(("user", "a"), ("assistant", "A"))}
    assert load("toolace", tmp_path, [row, row]).repeated == 1
    assert [e.id for e in load("toolace", tmp_path, [row | {"id": 0}]).examples] == ["0#turn1"]


def test_a_row_that_stands_in_both_files_is_held_out(tmp_path: Path) -> None:
    """Its id is made from its content; the division leaves it out of training."""
    one, two = toolace(("user", "a"), ("assistant", "A")), toolace(("user", "b"), ("assistant", "B"))
    loaded = load("toolace", tmp_path, [one, two], held_out_path=write(tmp_path / "held_out.jsonl", [one, one]))
    assert loaded.held_out == loaded.examples[:1]
    assert loaded.repeated == 1


# --- xLAM ---


def xlam(number: int, answers: Any, **fields: Any) -> dict[str, Any]:
    tools = [
        {
            "name": "live_giveaways",
            "description": "d",
            "parameters": {
                "type": {"description": "kind", "type": "str", "default": "game"},
                "ids": {"description": "", "type": "List[int], optional"},
                "limit": {"description": "how many", "type": "int"},
                "page": {"type": "int, default 1"},
                "counts": {"type": "defaultdict"},
            },
        }
    ]
    return {"id": number, "query": "q", "answers": json.dumps(answers), "tools": json.dumps(tools)} | fields


def test_xlam_types_become_a_schema(tmp_path: Path) -> None:
    (example,) = load("xlam", tmp_path, [xlam(0, [{"name": "live_giveaways", "arguments": {"type": "beta", "ids": [1, 2]}}])]).examples
    assert example.id == "xlam-0"
    assert example.response == '[live_giveaways(type="beta", ids=[1, 2])]'
    assert example.tools[0].parameters == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "description": "kind", "default": "game"},
            "ids": {"type": "array", "items": {"type": "integer"}},
            "limit": {"type": "integer", "description": "how many"},
            "page": {"type": "integer"},
            "counts": {},
        },
        "required": ["limit", "counts"],
    }


def test_xlam_counts_what_it_cannot_use(tmp_path: Path) -> None:
    good = xlam(0, [{"name": "live_giveaways", "arguments": {}}])
    rows = [good, xlam(1, []) | {"answers": "{broken"}, xlam(2, [{"arguments": {}}]), xlam(3, []), xlam(4, []) | {"tools": "nothing"}]
    assert load("xlam", tmp_path, rows).dropped == {"calls_unparseable": 2, "no_answer": 1, "tools_unparseable": 1}


def test_xlam_files_may_both_be_numbered_from_0(tmp_path: Path) -> None:
    row = xlam(0, [{"name": "live_giveaways", "arguments": {}}])
    held_out = write(tmp_path / "held_out.jsonl", [row | {"query": "another"}])
    loaded = load("xlam", tmp_path, [row], held_out_path=held_out)
    assert loaded.held_out is not None
    assert [e.id for e in [*loaded.examples, *loaded.held_out]] == ["xlam-0", "xlam-held-out-0"]


# --- ToolBench ---


def toolbench(*turns: tuple[str, str], query: str = "Weather?", parameters: Any = None) -> dict[str, Any]:
    apis = [
        {
            "name": "weather_for_api",
            "description": "it's",
            "parameters": parameters or {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        },
        {"name": "Finish", "description": "end", "parameters": {"type": "object", "properties": {}}},
    ]
    system = f"You are AutoGPT [x]. Specifically, you have access to the following APIs: {apis}".replace("Ellipsis", "...")
    values = [("system", system), ("user", f"\n{query}\nBegin!\n"), *turns]
    return {"id": "Step 1: " + query, "conversations": [{"from": role, "value": value} for role, value in values]}


def action(name: str, given: Any) -> tuple[str, str]:
    return "assistant", f"\nThought: Let me see.\nAction: {name}\nAction Input: {json.dumps(given)}"


def test_toolbench_actions_become_calls_and_finish_becomes_text(tmp_path: Path) -> None:
    first, last = action("weather_for_api", {"q": "Bern"}), action("Finish", {"return_type": "give_answer", "final_answer": "12 degrees."})
    rows = [toolbench(first), toolbench(first, ("function", '{"t": 12}'), last)]
    loaded = load("toolbench", tmp_path, rows)
    call, text = loaded.examples
    assert (call.response, text.response) == ('[weather_for_api(q="Bern")]', "12 degrees.")
    assert [tool.name for tool in call.tools] == ["weather_for_api"]
    assert [(m.role, m.content) for m in text.messages][1:] == [("assistant", call.response), ("tool", '{"t": 12}')]
    assert loaded.repeated == 1
    assert call.id.partition("#")[0] == text.id.partition("#")[0] != call.id


def test_toolbench_reads_an_action_in_time_proportional_to_its_text() -> None:
    """A model that goes on with empty lines alone: a search that begins at each of them would not end today."""
    assert read_action("Action: f" + "\n" * 1_000_000) is None
    assert read_action("Action: f\n\n  Action Input: {}") == ToolCall(name="f")


def test_toolbench_counts_what_it_cannot_use(tmp_path: Path) -> None:
    rows = [
        toolbench(action("weather_for_api", {"q": "x"})),
        toolbench(action("Finish", {"return_type": "give_up_and_restart"}), query="a"),
        toolbench(("assistant", "Thought: hm"), query="b"),
        toolbench(action("weather_for_api", "no object"), query="c"),
        toolbench(action("invented", {}), query="d"),
        toolbench(action("weather_for_api", {"q": math.inf}), query="no literal"),
    ]
    assert load("toolbench", tmp_path, rows).dropped == {"gave_up": 1, "calls_unparseable": 3, "unknown_tool": 1}


def test_toolbench_counts_what_follows_a_call_that_cannot_be_read(tmp_path: Path) -> None:
    unreadable, result = action("weather_for_api", "no object"), ("function", "{}")
    rows = [toolbench(unreadable, result, action("weather_for_api", {"q": "x"}), result, action("Finish", {"final_answer": "12"}))]
    assert load("toolbench", tmp_path, [toolbench(action("weather_for_api", {}), query="a"), *rows]).dropped == {"calls_unparseable": 3}


# --- OpenAI ---


def openai_call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def openai(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
        }
    ]
    return {"messages": list(messages), "tools": tools} | fields


def nested(depth: int) -> dict[str, Any]:
    """A tool whose parameters are so many arrays of each other."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": schema}}}


USER = {"role": "user", "content": "Bern?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [openai_call("get_weather", '{"city": "Bern"}')]}


def test_openai_messages_become_examples(tmp_path: Path) -> None:
    parts = {"role": "assistant", "content": [{"type": "text", "text": "12 "}, {"type": "text", "text": "degrees."}]}
    row = openai({"role": "developer", "content": "Be brief."}, USER, CALL, {"role": "tool", "content": "12"}, parts, id="mine")
    call, text = load("openai", tmp_path, [row]).examples
    assert (call.id, text.id) == ("mine#turn2", "mine#turn4")
    assert call.response == '[get_weather(city="Bern")]'
    assert [(m.role, m.content) for m in text.messages][2:] == [("assistant", call.response), ("tool", "12")]
    assert text.response == "12 degrees."
    assert text.messages[0].role == "system"


def test_openai_keeps_a_rows_own_id_and_leaves_out_weight_zero(tmp_path: Path) -> None:
    rows = [openai(USER, CALL, id=7), openai(USER, CALL | {"weight": 0}, USER, {"role": "assistant", "content": "ok"}, id="b")]
    assert [e.id for e in load("openai", tmp_path, rows).examples] == ["7", "b#turn3"]


def test_openai_counts_what_it_cannot_use(tmp_path: Path) -> None:
    rows = [
        openai(USER, CALL),
        openai(USER, CALL | {"tool_calls": [openai_call("get_weather", "{broken")]}),
        openai(USER, CALL | {"tool_calls": [openai_call("other", "{}")]}),
        openai(USER),
        openai(USER, {"role": "assistant", "content": ""}),
    ]
    assert load("openai", tmp_path, rows).dropped == {"calls_unparseable": 1, "unknown_tool": 1, "no_answer": 2}


def test_an_openai_conversation_ends_at_a_call_without_a_literal(tmp_path: Path) -> None:
    """Later turns would stand after an assistant turn that says nothing. They are lost, too, and counted."""
    unwritable = CALL | {"tool_calls": [openai_call("get_weather", '{"city": NaN}')]}
    unlearned = unwritable | {"weight": 0}
    rows = [openai(USER, unwritable, USER, CALL), openai(USER, unlearned, USER, CALL, USER, CALL), openai(USER, CALL)]
    loaded = load("openai", tmp_path, rows)
    assert [len(example.messages) for example in loaded.examples] == [1]
    assert loaded.dropped == {"calls_unparseable": 4}


@pytest.mark.parametrize("arguments", [None, "", "null", "{}", {}])
def test_an_openai_call_may_have_no_arguments(tmp_path: Path, arguments: object) -> None:
    """Written as null they stand for the same as left out, which is how a column of a hub data set gives them."""
    (example,) = load("openai", tmp_path, [openai(USER, CALL | {"tool_calls": [openai_call("get_weather", arguments)]})]).examples
    assert example.response == "[get_weather()]"


# --- structural faults, the same for every format ---


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("openai", {"tools": []}, "data.jsonl:2: field 'messages' is missing; the row has tools"),
        ("openai", {"messages": "hi"}, "data.jsonl:2: field 'messages' is a string, not a list"),
        ("openai", openai(USER, CALL, tools=[{"type": "function", "function": {"description": "x"}}]), "data.jsonl:2: tool 1 has no name"),
        ("openai", openai({"role": "robot", "content": ""}), "data.jsonl:2: a message has role 'robot'"),
        ("openai", openai(USER, CALL, id="same"), "data.jsonl:3: id 'same' stands at .*data.jsonl:2 already"),
        ("openai", "hi", "data.jsonl:2: the row is a string, not an object"),
        ("toolace", toolace(("user", "q"), ("assistant", "a"), tools=[{"description": "x"}]), "data.jsonl:2: tool 1 has no name"),
        ("toolace", {"system": "s"}, "data.jsonl:2: field 'conversations' is missing"),
        ("xlam", {"id": 1, "answers": "[]", "tools": "[]"}, "data.jsonl:2: field 'query' is missing"),
        ("xlam", xlam(1, [{"name": "live_giveaways", "arguments": {}}]), "data.jsonl:3: id 'xlam-1' stands at"),
        ("toolbench", {"conversations": [{"from": "user"}]}, "data.jsonl:2: a turn's value is null, not a string"),
        ("openai", openai({"role": ["user"], "content": ""}), r"data.jsonl:2: a message has role \['user'\]"),
        ("toolace", {"system": "", "conversations": [{"from": ["user"]}]}, r"data.jsonl:2: a turn is from \['user'\]"),
        ("toolbench", {"conversations": [{"from": {}}]}, "data.jsonl:2: a turn is from {}"),
        ("openai", openai(USER, CALL, id=""), "data.jsonl:2: field 'id' is empty"),
        ("openai", openai(USER, {"role": "assistant", "function_call": {"name": "f"}}), "data.jsonl:2: message 2 has a 'function_call'"),
        ("openai", {"messages": [USER], "functions": [{"name": "f"}]}, "data.jsonl:2: field 'functions' is the older form"),
        ("openai", openai(USER, CALL, id="a\ud83d"), r"data.jsonl:2: the text holds '\\ud83d', half of a character"),
        ("toolace", toolace(("user", "\ud83d"), ("assistant", "a")), r"data.jsonl:2: the text holds '\\ud83d', half of a character"),
        ("xlam", xlam(1, [{"name": "live_giveaways", "arguments": {"type": "\ud83d"}}]), "data.jsonl:2: .*surrogate"),
        ("openai", openai(USER, CALL, tools=[nested(400)]), "data.jsonl:2: the row cannot be used: .*depth"),
        ("toolbench", toolbench(action("weather_for_api", {}), parameters={1: 2}), r"data.jsonl:2: the row cannot be used: parameters\.1"),
        ("toolbench", toolbench(action("weather_for_api", {}), parameters={"d": ...}), "data.jsonl:2: the row cannot be used: .*ellipsis"),
    ],
)
def test_a_structural_fault_stops_with_file_and_line(source: str, row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        load_examples(DataConfig.model_validate({"source": source, "path": str(path)}))


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(openai(USER, CALL)) + '\n{"messages": \n')
    with pytest.raises(InputError, match=r"data.jsonl:2: broken JSON: Expecting value at column 14$"):
        load_examples(DataConfig(source="openai", path=str(path)))
    path.write_text('{"messages": "\t"}')
    with pytest.raises(InputError, match=r"data.jsonl:1: broken JSON: Invalid control character at column 15"):
        load_examples(DataConfig(source="openai", path=str(path)))
    path.write_text('[\n{"messages": [], "x": NaN}]')
    with pytest.raises(InputError, match=r"data.jsonl:2: broken JSON: NaN is not a JSON value"):
        load_examples(DataConfig(source="openai", path=str(path)))
    path.write_text("[" + json.dumps(openai(USER, CALL), indent=1) + ",\n\n{'a'}]")
    with pytest.raises(InputError, match=r"data.jsonl:\d\d: broken JSON"):
        load_examples(DataConfig(source="openai", path=str(path)))
    path.write_text(json.dumps([openai(USER, CALL)]) + "\n{}")
    with pytest.raises(InputError, match=r"data.jsonl:2: broken JSON: text follows the array"):
        load_examples(DataConfig(source="openai", path=str(path)))


@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("[", ",\n")])
def test_text_that_is_not_utf_8_names_its_line_and_byte(start: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = json.dumps(openai(USER, CALL))
    path.write_bytes(f"\ufeff{start}{(row + end) * 200}".encode() + b'{"a": "\xe4"}')
    with pytest.raises(InputError, match=r"data.jsonl:201: the text is not UTF-8: invalid continuation byte 0xe4 at byte 8"):
        load_examples(DataConfig(source="openai", path=str(path)))


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(openai(USER, CALL, id="a")).encode())
    assert [example.id for example in load_examples(DataConfig(source="openai", path=str(path))).examples] == ["a"]


def test_an_array_and_lines_and_a_folder_hold_the_same(tmp_path: Path) -> None:
    rows = [openai(USER, CALL, id="a"), openai(USER, CALL, id="b")]
    lines = load("openai", tmp_path, rows).examples
    array = load_examples(DataConfig(source="openai", path=write(tmp_path / "array.json", rows, array=True))).examples
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "1.jsonl", rows[:1])
    write(folder / "2.json", rows[1:], array=True)
    held_out = write(folder / "test.jsonl", [openai(USER, CALL, id="h")])
    from_folder = load_examples(DataConfig(source="openai", path=str(folder), held_out_path=held_out))
    assert lines == array == from_folder.examples
    assert from_folder.held_out is not None
    assert [e.id for e in from_folder.held_out] == ["h"]


def test_held_out_data_may_not_repeat_an_id(tmp_path: Path) -> None:
    held_out = write(tmp_path / "held_out.jsonl", [openai(USER, CALL, id="a")])
    with pytest.raises(InputError, match=r"held_out.jsonl:1: id 'a' stands at .*data.jsonl:1 already"):
        load("openai", tmp_path, [openai(USER, CALL, id="a")], held_out_path=held_out)


def test_data_of_which_nothing_can_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no example of .* can be used \(no_answer 2\)"):
        load("openai", tmp_path, [openai(USER), openai(USER)])
    with pytest.raises(InputError, match=r"data.jsonl holds no row\. Give a file with examples"):
        load("openai", tmp_path, [])


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_examples(DataConfig(source="openai", path=str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match=rf"data file {Path('none.jsonl').absolute()} does not exist"):
        load_examples(DataConfig(source="openai", path="none.jsonl"))
    with pytest.raises(InputError, match=r"holds no \.json or \.jsonl file"):
        load_examples(DataConfig(source="openai", path=str(tmp_path)))


def test_data_that_may_not_be_read_are_said_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data.jsonl", [openai(USER, CALL)])

    def refuse(file: Path, *_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "no", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"cannot use .*data.jsonl: Permission denied\. Change its permissions so that it can be read"):
        load_examples(DataConfig(source="openai", path=path))


def test_what_a_limit_leaves_out_came_in_but_was_not_dropped(tmp_path: Path) -> None:
    rows = [*(openai(USER, CALL, id=f"e{i}") for i in range(18)), openai(USER), openai(USER)]
    loaded = load("openai", tmp_path, rows, count=5)
    assert (loaded.incoming, len(loaded.examples), loaded.left_out, loaded.dropped) == (20, 5, 13, {"no_answer": 2})


def test_a_limit_picks_by_id_and_not_by_place(tmp_path: Path) -> None:
    rows = [openai(USER, CALL, id=f"e{i}") for i in range(20)]
    few = load("openai", tmp_path, rows, count=5).examples
    assert {e.id for e in few} == {e.id for e in load("openai", tmp_path, rows[::-1], count=5).examples}
    assert {e.id for e in few} < {e.id for e in load("openai", tmp_path, rows, count=6).examples}


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("str, optional", {"type": "string"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("Optional[float]", {"type": "number"}),
        ("Dict[str, Any]", {"type": "object"}),
        ("Union[int, float]", {"type": ["integer", "number"]}),
        ("Union[Union[int, str], Optional[int], float]", {"type": ["integer", "string", "number"]}),
        ("Union[Union[int, Any], float]", {}),
        ("Tuple[int, int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[List[str]], optional", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        ("Callable[[float], float]", {}),
        ("any", {}),
    ],
)
def test_python_type_names_become_json_schema(text: str, schema: dict[str, Any]) -> None:
    assert type_to_schema(text) == schema


def test_schemas_get_json_schemas_words_at_every_depth() -> None:
    given = {
        "type": "dict",
        "properties": {"a": {"type": "list", "items": {"type": "dict", "properties": {"b": {"type": "float"}}}}},
        "required": [],
    }
    assert normalise_parameters(given) == {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "number"}}}}},
    }
    assert normalise_parameters(None) == {"type": "object", "properties": {}}
