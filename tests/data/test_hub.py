"""Data sets of the Hugging Face hub: rows, nested columns, and what a hub does not give."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest

from itool.config import DataConfig
from itool.data.sources.load import load_examples
from itool.errors import DependencyError, InputError
from tests.data.test_sources import USER, load, openai, openai_call, toolace


def test_rows_of_the_hub_become_examples_and_are_named_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    rows = [toolace(("user", text), ("assistant", "Fine.")) for text in ("a", "b")]
    asked: list[tuple[str, str]] = []

    def load_dataset(path: str, split: str) -> Any:
        asked.append((path, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = DataConfig(source="toolace", path="Team-ACE/ToolACE")
    assert [example.messages[-1].content for example in load_examples(settings).examples] == ["a", "b"]
    assert asked == [("Team-ACE/ToolACE", "train")]
    rows[1]["conversations"] = None
    with pytest.raises(InputError, match=r"^Team-ACE/ToolACE:2: field 'conversations' is null, not a list$"):
        load_examples(settings)


def test_nested_columns_of_the_hub_give_what_the_rows_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    calls = {"get_weather": {"city": "Bern"}, "set_alarm": {"time": "7:00", "label": "Up"}}
    rows = [
        openai(
            {"role": "user", "content": f"Call {name}."},
            {"role": "assistant", "content": None, "tool_calls": [openai_call(name, arguments)]},
            tools=[{"name": name, "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}}}],
        )
        for name, arguments in calls.items()
    ]
    hub = datasets.Dataset.from_list(rows)
    assert hub[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bern", "time": None, "label": None}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: hub)
    loaded = load_examples(DataConfig(source="openai", path="owner/name"))
    assert [example.calls[0].arguments for example in loaded.examples] == list(calls.values())
    from_file = load("openai", tmp_path, rows)
    assert [(e.messages, e.tools, e.response) for e in loaded.examples] == [(e.messages, e.tools, e.response) for e in from_file.examples]


def test_a_json_column_of_the_hub_keeps_its_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    call = openai({"role": "assistant", "tool_calls": [openai_call("get_weather", {"city": None})]})["messages"]
    features = datasets.Features({"messages": datasets.List(datasets.Json()), "tools": datasets.Json()})
    hub = datasets.Dataset.from_list([openai(USER, *call)], features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, split: hub)
    (example,) = load_examples(DataConfig(source="openai", path="owner/name")).examples
    assert example.response == "[get_weather(city=null)]"


def test_an_unreachable_hub_is_a_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")

    def refuse(path: str, split: str) -> None:
        raise ConnectionError("offline\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DependencyError, match=r"data set Team-ACE/ToolACE cannot be loaded from the hub: offline\."):
        load_examples(DataConfig(source="toolace", path="Team-ACE/ToolACE"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DatasetNotFoundError", "Dataset 'a/b' is a gated dataset on the Hub."),
        ("ValueError", "Unknown split \"train\". Should be one of ['test']."),
        ("RuntimeError", "Dataset scripts are no longer supported, but found b.py"),
    ],
)
def test_a_data_set_that_the_hub_does_not_give_is_bad_input(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    fault = getattr(datasets.exceptions, name, None) or getattr(builtins, name)

    def refuse(path: str, split: str) -> None:
        raise fault(f"{message}\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=rf"data set a/b cannot be used: {re.escape(message.rstrip('.'))}\. Check the name"):
        load_examples(DataConfig(source="toolace", path="a/b"))
