"""Prepare by itself: what its manifest says of data that cannot all be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from itool.artifacts.manifest import manifest_key, parse_manifest
from itool.artifacts.resolve import manifest_prefixes
from itool.artifacts.store import FolderStore
from jobs import prepare

SHARES = {"data.buffer_fraction": 0.3, "data.validation_fraction": 0.1, "data.max_dropped_fraction": 0.5}


def write_rows(path: Path, questions: range) -> str:
    """xLAM rows that ask these questions under ids of this file's own."""
    tools = json.dumps([{"name": "f", "description": "", "parameters": {"a": {"type": "int", "description": ""}}}])
    answers = json.dumps([{"name": "f", "arguments": {"a": 1}}])
    rows = [{"id": f"{path.stem}-{q}", "query": f"q{q}", "answers": answers, "tools": tools} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(folder: Path, **settings: Any) -> dict[str, int]:
    """Run the stage; what its manifest counts as dropped."""
    values = SHARES | {"root": str(folder / "runs"), **{key.replace("__", "."): value for key, value in settings.items()}}
    flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]
    assert prepare.main(["--iteration", "0", *flags]) == 0
    store = FolderStore(folder / "runs")
    (prefix,) = manifest_prefixes(store.list("demo"))
    return dict(parse_manifest(store.read(manifest_key(prefix)), prefix).counts.dropped)


def test_training_examples_that_a_held_out_file_repeats_are_counted(tmp_path: Path) -> None:
    data, held_out = write_rows(tmp_path / "data.jsonl", range(40)), write_rows(tmp_path / "held_out.jsonl", range(30, 50))
    assert prepared(tmp_path, data__source="xlam", data__path=data, data__held_out_path=held_out) == {"repeats_held_out": 10}
