"""Prepare by itself: what its manifest says of data that cannot all be used, and the model that it leaves to the other stages."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from itool.artifacts.manifest import Manifest, manifest_key, parse_manifest
from itool.artifacts.resolve import manifest_prefixes, resolve
from itool.artifacts.store import FolderStore
from itool.config import DataConfig, load_config
from itool.data.chat import end_of_turn_id, load_tokenizer, render_prompt, token_counts
from itool.data.sources.load import load_examples
from itool.demo import base_model_path
from itool.demo.task import generate
from itool.policy.model_folder import read_model_folder
from itool.records import Example
from itool.stages import StageId
from jobs import prepare

SHARES = {"data.buffer_fraction": 0.3, "data.validation_fraction": 0.1, "data.max_dropped_fraction": 0.5}


def write_rows(path: Path, questions: range) -> str:
    """xLAM rows that ask these questions under ids of this file's own."""
    tools = json.dumps([{"name": "f", "description": "", "parameters": {"a": {"type": "int", "description": ""}}}])
    answers = json.dumps([{"name": "f", "arguments": {"a": 1}}])
    rows = [{"id": f"{path.stem}-{q}", "query": f"q{q}", "answers": answers, "tools": tools} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(folder: Path, **settings: Any) -> Manifest:
    """Run the stage; its manifest."""
    values = SHARES | {"root": str(folder / "runs"), **{key.replace("__", "."): value for key, value in settings.items()}}
    flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]
    assert prepare.main(["--iteration", "0", *flags]) == 0
    store = FolderStore(folder / "runs")
    (prefix,) = manifest_prefixes(store.list("demo"))
    return parse_manifest(store.read(manifest_key(prefix)), prefix)


def test_training_examples_that_a_held_out_file_repeats_are_counted(tmp_path: Path) -> None:
    data, held_out = write_rows(tmp_path / "data.jsonl", range(40)), write_rows(tmp_path / "held_out.jsonl", range(30, 50))
    manifest = prepared(tmp_path, data__source="xlam", data__path=data, data__held_out_path=held_out)
    assert manifest.counts.dropped == {"repeats_held_out": 10}


def test_a_limit_neither_fails_clean_data_nor_hides_what_is_too_long(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", range(190))
    with Path(data).open("a") as file:
        file.writelines(json.dumps({"id": f"bad-{n}", "query": "", "answers": "[]", "tools": "[]"}) + "\n" for n in range(10))
    few = {"data__source": "xlam", "data__path": data, "data__count": 20, "data__max_dropped_fraction": 0.2, "data__held_out_fraction": 0.2}
    manifest = prepared(tmp_path, **few)
    assert (manifest.counts.incoming, manifest.counts.kept, sum(manifest.counts.dropped.values())) == (200, 20, 10)
    assert manifest.metrics["left_out"] == 170
    flags = [f"{name.replace('__', '.')}={value}" for name, value in few.items()]
    assert prepare.main([flag for setting in [*flags, f"root={tmp_path}", "model.context_tokens=129"] for flag in ("--set", setting)]) == 65
    assert "dropped 20 of 20 records (prompt_too_long 20)" in capfd.readouterr().err.strip().splitlines()[-1]


def test_it_stops_between_two_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_stopped(tokenizer: Any, example: Example) -> tuple[int, int]:
        os.kill(os.getpid(), signal.SIGTERM)
        return token_counts(tokenizer, example)

    monkeypatch.setattr(prepare, "token_counts", be_stopped)
    assert prepare.main(["--set", f"root={tmp_path}", "--set", "data.count=60", "--set", "data.held_out_count=10"]) == 75
    assert FolderStore(tmp_path).list("") == {}


def test_what_just_fits_is_kept(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", range(10**30 - 10, 10**30 + 10))
    tokenizer = load_tokenizer(base_model_path())
    counts = [token_counts(tokenizer, one) for one in load_examples(DataConfig(source="xlam", path=data)).examples]
    prompt, answer = max(tokens for tokens, _ in counts), max(tokens for _, tokens in counts)

    def dropped(name: str, context: int) -> dict[str, int]:
        limits = {"model__max_response_tokens": answer, "model__context_tokens": context}
        (tmp_path / name).mkdir()
        parts = {"data__held_out_fraction": 0.3, "data__validation_fraction": 0, "data__max_dropped_fraction": 0.9}
        return prepared(tmp_path / name, data__source="xlam", data__path=data, **parts, **limits).counts.dropped

    assert dropped("fits", prompt + answer) == {}
    longest = sum(tokens == prompt for tokens, _ in counts)
    assert 0 < longest < len(counts)
    assert dropped("one less", prompt + answer - 1) == {"prompt_too_long": longest}


def test_the_built_in_task_is_that_of_the_seed_and_a_checkers_buffer_has_no_text(tmp_path: Path) -> None:
    prepared(tmp_path, seed=3, data__count=90, data__held_out_count=12, data__buffer_labels="checker", select__by="pass_rate")

    def stored(name: str) -> list[Example]:
        (path,) = (tmp_path / "runs").rglob(f"{name}.jsonl")
        return [Example.model_validate_json(line) for line in path.read_text().splitlines()]

    train, held_out = ({one.id: one for one in generate(split, count, 3)} for split, count in (("train", 90), ("held_out", 12)))
    warmup, buffer = stored("warmup"), stored("buffer")
    assert [one.model_copy(update={"difficulty": None}) for one in stored("held_out")] == list(held_out.values())
    assert [one.model_copy(update={"difficulty": None}) for one in warmup] == [train[one.id] for one in warmup]
    assert buffer == [train[one.id].model_copy(update={"response": None}) for one in buffer]
    for part in (warmup, stored("held_out")):
        sizes = [sum(one.difficulty == level for one in part) for level in ("easy", "medium", "hard")]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == len(part) > 0


def test_training_and_sampling_agree_on_the_end_of_a_turn(tmp_path: Path) -> None:
    """The template closes turns with a token that no configuration of the base names."""
    template = tmp_path / "mine.jinja"
    template.write_text((base_model_path() / "chat_template.jinja").read_text().replace("<|end|>", "<|tool|>"))
    prepared(tmp_path, model__chat_template=template, data__count=60, data__held_out_count=10)
    (model,) = (tmp_path / "runs").rglob("model")
    closes = end_of_turn_id(load_tokenizer(model))
    assert load_tokenizer(model).convert_ids_to_tokens(closes) == "<|tool|>"
    assert read_model_folder(model, context_tokens=1024).stop_ids == (1, closes)


def test_the_prompts_of_a_run_open_no_thoughts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A template that ends every prompt with `<think>`, as Qwen 3.5's and DeepSeek R1's do."""
    template = tmp_path / "thinks.jinja"
    opens = "{%- if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    template.write_text((base_model_path() / "chat_template.jinja").read_text().removesuffix("\n") + opens)
    prepared(tmp_path, model__chat_template=template, data__count=60, data__held_out_count=10)
    (model,) = (tmp_path / "runs").rglob("model")
    tokenizer = load_tokenizer(model)
    assert tokenizer.decode(render_prompt(tokenizer, generate("train", 1, 3)[0])).endswith("<|assistant|><think>\n\n</think>\n\n")
    assert "opens a block of thoughts" in capfd.readouterr().err


def write_template(folder: Path, refuses: str) -> Path:
    """The demo's template, which refuses a conversation that holds this text."""
    template = folder / "strict.jinja"
    rule = f"{{%- for m in messages if '{refuses}' in m.content %}}{{{{ raise_exception('I do not take ' + m.content) }}}}{{% endfor -%}}"
    template.write_text(rule + (base_model_path() / "chat_template.jinja").read_text())
    return template


def test_conversations_that_the_template_refuses_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = {"data__source": "xlam", "data__path": write_rows(tmp_path / "data.jsonl", range(100)), "data__held_out_fraction": 0.2}
    manifest = prepared(tmp_path, model__chat_template=write_template(tmp_path, "q7"), **data)
    assert manifest.counts.dropped == {"template_refuses": 11}
    assert manifest.counts.kept == 89
    assert re.search(r"refuses example xlam-data-7\d?: I do not take q7", capfd.readouterr().err)


def test_a_template_that_refuses_every_conversation_is_quoted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", range(10, 20))
    template = write_template(tmp_path, "q1")
    assert refused(tmp_path, "data.source=xlam", f"data.path={data}", f"model.chat_template={template}", "data.held_out_count=null") == 65
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"refuses example xlam-data-1\d: I do not take q1\d\. ", message)
    assert "It refuses all 10 examples: set model.chat_template" in message


def test_a_corrected_data_file_is_prepared_anew_under_the_key_that_its_controller_knows(tmp_path: Path) -> None:
    data, store = tmp_path / "data.jsonl", FolderStore(tmp_path / "runs")
    flags = [f"{name}={value}" for name, value in SHARES.items()]
    flags += ["data.source=xlam", f"data.path={data}", "data.held_out_fraction=0.2", f"root={tmp_path / 'runs'}"]
    config = load_config(None, flags)
    keys = set()
    for questions in (range(40), range(50)):
        write_rows(data, questions)
        known = resolve(store, config)[StageId(0, "prepare")]
        assert known.state != "done"
        keys.add(known.key)
        assert prepare.main(["--iteration", "0", "--key", str(known.key), *(f for flag in flags for f in ("--set", flag))]) == 0
        assert resolve(store, config)[StageId(0, "prepare")].prefix == known.prefix
        assert resolve(store, config)[StageId(0, "prepare")].done
    assert len(keys) == 2


def refused(folder: Path, *settings: str) -> int:
    chosen = [f"root={folder}", "data.count=40", "data.held_out_count=20", *settings]
    return prepare.main([flag for setting in chosen for flag in ("--set", setting)])


def test_a_context_that_is_too_short_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(tmp_path, "model.context_tokens=129") == 65
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "stage i0/prepare dropped 60 of 60 records (prompt_too_long 60), more than data.max_dropped_fraction 0.2" in message
    assert "Raise model.context_tokens = 129 or lower model.max_response_tokens = 128, or raise that limit" in message


def test_an_empty_set_names_what_was_dropped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(tmp_path, "model.max_response_tokens=12", "data.max_dropped_fraction=0.99", "data.buffer_fraction=0.001") == 65
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "the buffer set is empty (dropped: response_too_long " in message
    assert "Raise model.max_response_tokens = 12. Give more data, or raise data.buffer_fraction" in message
