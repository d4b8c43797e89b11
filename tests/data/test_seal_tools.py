"""Seal-Tools: right tools and distractors from a pool, withheld tools, faults of the pool, and the real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from itool.config import DataConfig
from itool.data.sources.load import Loaded, load_examples
from itool.data.toolcall import parse_calls
from itool.errors import InputError
from itool.records import Example
from tests.data.test_sources import load, write

SEAL = Path(__file__).parents[3] / "shared" / "data" / "seal-tools"
POOL = [
    {
        "api_name": f"tool{i}",
        "api_description": "d",
        "field": f"Field{i % 3}/Part{i % 6}",
        "parameters": {"x": {"type": "float", "description": "an x"}},
        "required": ["x"],
    }
    for i in range(30)
]


def seal(name: str, *apis: str) -> dict[str, Any]:
    return {"id": name, "query": "q", "calling": [{"api": api, "parameters": {"x": "API_call_0"}, "responses": []} for api in apis]}


def load_seal(tmp_path: Path, rows: list[Any], **settings: Any) -> Loaded:
    write(tmp_path / "tool.jsonl", POOL)
    return load("seal_tools", tmp_path, rows, **settings)


def test_seal_tools_lists_hold_the_right_tools_and_distractors(tmp_path: Path) -> None:
    loaded = load_seal(tmp_path, [seal(f"s{i}", "tool1", "tool4") for i in range(50)])
    sizes = set()
    for example in loaded.examples:
        names = [tool.name for tool in example.tools]
        assert {"tool1", "tool4"} <= set(names)
        assert len(set(names)) == len(names)
        sizes.add(len(names))
    assert sizes == {3, 4, 5, 6}
    assert loaded.examples[0].response == '[tool1(x="API_call_0"), tool4(x="API_call_0")]'
    assert loaded.examples[0].tools[0].parameters["properties"] == {"x": {"type": "number", "description": "an x"}}
    assert len({tuple(tool.name for tool in e.tools) for e in loaded.examples}) > 40


@pytest.mark.parametrize("pool", [None, "~/tool.jsonl"])
def test_paths_may_name_the_home_folder(pool: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = load_seal(tmp_path, [seal("a", "tool1")], held_out_path=write(tmp_path / "held_out.jsonl", [seal("b", "tool1")]))
    settings = {"source": "seal_tools", "path": "~", "held_out_path": "~/held_out.jsonl", "tool_pool_path": pool}
    assert load_examples(DataConfig.model_validate(settings)) == expected


def test_a_candidate_list_depends_on_its_example_alone(tmp_path: Path) -> None:
    rows = [seal(f"s{i}", "tool1") for i in range(5)]
    assert load_seal(tmp_path, rows[3:]).examples == load_seal(tmp_path, rows).examples[3:]


def test_withheld_tools_make_text_the_right_answer(tmp_path: Path) -> None:
    loaded = load_seal(tmp_path, [seal(f"s{i}", "tool1") for i in range(40)], no_call_fraction=0.5)
    text = [e for e in loaded.examples if e.stratum == "text"]
    assert 10 < len(text) < 30
    assert all(e.tools and "tool1" not in [tool.name for tool in e.tools] and e.response for e in text)


def test_tools_are_not_withheld_where_no_other_is_offered(tmp_path: Path) -> None:
    loaded = load_seal(tmp_path, [seal(f"s{i}", "tool1", "tool4") for i in range(20)], no_call_fraction=0.9, candidate_tools=2)
    assert {(e.stratum, len(e.tools)) for e in loaded.examples} == {("calls", 2)}


def test_seal_tools_faults(tmp_path: Path) -> None:
    assert load_seal(tmp_path, [seal("a", "tool1"), seal("b", "nobody"), seal("c")]).dropped == {"unknown_tool": 1, "no_answer": 1}
    (tmp_path / "tool.jsonl").unlink()
    with pytest.raises(InputError, match=r"tool pool .*tool.jsonl does not exist\. Set .*, or correct data.path = .*data.jsonl"):
        load("seal_tools", tmp_path, [seal("a", "tool1")])
    with pytest.raises(InputError, match=r"tool pool .* is a folder, not a file\. Set data.tool_pool_path"):
        load("seal_tools", tmp_path, [seal("a", "tool1")], tool_pool_path=str(tmp_path))
    pool = write(tmp_path / "pool.jsonl", [POOL[0], {**POOL[1], "api_name": " "}])
    with pytest.raises(InputError, match=r"pool.jsonl:2: a tool has no name"):
        load("seal_tools", tmp_path, [seal("a", "tool1")], tool_pool_path=pool)


@pytest.mark.parametrize("field", ["field", "api_description"])
def test_a_pool_field_of_the_wrong_type_is_named(field: str, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", [POOL[0], {**POOL[1], field: 5}])
    with pytest.raises(InputError, match=rf"pool.jsonl:2: field '{field}' is a whole number, not a string"):
        load("seal_tools", tmp_path, [seal("a", "tool1")], tool_pool_path=pool)


@pytest.mark.skipif(not SEAL.is_dir(), reason="no Seal-Tools data beside the repository")
def test_the_real_seal_tools_load_without_a_drop() -> None:
    loaded = load_examples(DataConfig(source="seal_tools", path=str(SEAL / "dev.jsonl"), held_out_path=str(SEAL / "test_in_domain.jsonl")))
    assert loaded.held_out is not None
    assert (len(loaded.examples), len(loaded.held_out), loaded.dropped) == (700, 700, {})
    examples: list[Example] = [*loaded.examples, *loaded.held_out]
    assert {len(e.calls) for e in examples} == {1, 2, 3, 4, 5, 6}
    assert all(len({c.name for c in e.calls}) <= len(e.tools) <= 6 for e in examples)
    for example in examples:
        assert parse_calls(example.response or "", example.tools) == example.calls
