import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from transformers import AutoTokenizer

from itool.config import ModelConfig
from itool.data.chat import end_of_turn_id, load_tokenizer
from itool.demo import base_model_path
from itool.errors import DependencyError, InputError, StorageError
from itool.policy.model_folder import read_model_folder
from itool.train.materialise import MODEL_FILES, close_thoughts, materialise, name_end_of_turn
from itool.train.model import load_model

FETCHED = sorted((Path(__file__).resolve().parents[2] / "models").glob("*.gguf"))
TEMPLATES = Path(str(importlib.util.find_spec("trl").origin)).parent / "chat_templates"
GGUF = os.environ.get("ITOOL_TEST_GGUF") or (str(FETCHED[0]) if FETCHED else None)


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def config(path, **more):
    return ModelConfig(path=str(path), context_tokens=128, max_response_tokens=16, **more)


def header(text: str) -> bytes:
    """A safetensors file of nothing but a header."""
    return struct.pack("<Q", len(text)) + text.encode()


def test_a_folder_is_copied_without_what_a_model_does_not_need(base, tmp_path):
    (base / "optimizer.pt").write_bytes(b"x")
    materialise(config(base), tmp_path / "target")
    names = {path.name for path in (tmp_path / "target").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "optimizer.pt" not in names
    assert load_model(tmp_path / "target").num_parameters() == load_model(base).num_parameters()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not readable JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json names no model_type. Give a folder"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "qwen3_5", "text_config": {}}'), "no model of text alone"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "no .*safetensors; it has weights in another format"),
        (lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1]), "truncated"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not readable JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(header("[" * 100_000)), "truncated or damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(header('{"x": {"data_offsets": 7}}')), "truncated or damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(header("[]")), "truncated or damaged"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), r"holds an adapter \(adapter_config\.json\)\. Merge it"),
    ],
)
def test_a_missing_part_is_named(base, tmp_path, broken, message):
    broken(base)
    with pytest.raises(InputError, match=message):
        materialise(config(base), tmp_path / "target")


def test_a_models_own_code_is_neither_run_nor_asked_about(base, tmp_path, monkeypatch):
    """Left to its default, transformers asks whoever sits at the terminal whether it may run what lies in the folder."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks"))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nOwn = OwnTokenizer = object\n"
    (base / "own.py").write_text(code)
    settings = json.loads((base / "config.json").read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (base / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": own}))
    with pytest.raises(InputError, match="contains custom code"):
        load_model(base)
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}})
    )
    with pytest.raises(InputError, match="contains custom code"):
        load_tokenizer(base)
    assert not (tmp_path / "ran").exists()


def test_a_context_beyond_the_models_is_refused(base, tmp_path):
    with pytest.raises(InputError, match=r"reads 128 tokens, model\.context_tokens is 256"):
        materialise(config(base).model_copy(update={"context_tokens": 256}), tmp_path / "target")


def test_sharded_weights_are_copied_and_a_lost_shard_is_named(base, tmp_path):
    load_model(base).save_pretrained(base, max_shard_size="20KB")
    (base / "model.safetensors").unlink()
    materialise(config(base), tmp_path / "target")
    assert load_model(tmp_path / "target").num_parameters() > 0
    lost = max(base.glob("model-*.safetensors"))
    lost.unlink()
    with pytest.raises(InputError, match=f"no {lost.name}, which model.safetensors.index.json lists"):
        materialise(config(base), tmp_path / "again")


def test_a_chat_template_can_be_replaced_or_supplied(base, tmp_path):
    (base / "chat_template.jinja").unlink()
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    materialise(config(base, chat_template=str(template)), tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w7"}], tokenize=False) == "w7!"


def test_named_chat_templates_are_copied_unless_another_replaces_them(base, tmp_path):
    """As transformers saves them: it takes `tool_use` where there are tools, and the default elsewhere."""
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = {"default": "no tools here", "tool_use": "{{ tools[0].function.name }}"}
    tokenizer.save_pretrained(base)
    materialise(config(base), tmp_path / "target")
    assert render_with_a_tool(tmp_path / "target") == "get_time"
    template = tmp_path / "mine.jinja"
    template.write_text("mine")
    materialise(config(base, chat_template=str(template)), tmp_path / "replaced")
    assert render_with_a_tool(tmp_path / "replaced") == "mine"


def render_with_a_tool(folder):
    tool = {"type": "function", "function": {"name": "get_time", "description": "", "parameters": {}}}
    messages = [{"role": "user", "content": "w7"}]
    return load_tokenizer(folder).apply_chat_template(messages, tools=[tool], add_generation_prompt=True, tokenize=False)


def opening(folder):
    """A prompt, which the answer follows."""
    messages = [{"role": "user", "content": "w7"}]
    return load_tokenizer(folder).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize(
    ("template", "ending"),
    [
        ("qwen3_5_think", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("nemotron_3_nano", "<|im_start|>assistant\n<think></think>"),
        ("deepseek_r1_distill", "<｜User｜>w7<｜Assistant｜><think>\n\n</think>\n\n"),
    ],
    ids=["qwen", "nemotron", "deepseek"],
)
def test_thoughts_that_a_template_opens_are_closed_in_the_models_own_way_or_as_an_empty_block(base, tmp_path, template, ending):
    """The models' own templates, as TRL holds them. An answer would have been learned, sampled and judged as a thought."""
    materialise(config(base, chat_template=str(TEMPLATES / f"{template}.jinja")), tmp_path / "target")
    assert opening(tmp_path / "target").endswith("<think>\n")
    for _ in range(2):
        with capture_logs() as said:
            close_thoughts(tmp_path / "target")
        assert opening(tmp_path / "target").endswith(ending)
    assert said == []


def test_a_named_template_closes_the_thoughts_that_it_opens(base):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = {"default": "no tools here", "tool_use": "{{ tools[0].function.name }} <think>"}
    tokenizer.save_pretrained(base)
    close_thoughts(base)
    assert (render_with_a_tool(base), opening(base)) == ("get_time <think>\n</think>\n\n", "no tools here")


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", 5])
def test_a_template_that_is_named_like_a_path_is_written_nowhere(base, tmp_path, name):
    opens, path = (base / "chat_template.jinja").read_text() + "<think>", base / "tokenizer_config.json"
    (base / "chat_template.jinja").unlink()
    named = [{"name": called, "template": opens} for called in ("default", "tool_use", name)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    before = sorted(tmp_path.rglob("*.jinja"))
    with pytest.raises(InputError, match=r"a chat template named .*, which no file can be"):
        close_thoughts(base)
    assert sorted(tmp_path.rglob("*.jinja")) == before


def test_the_end_of_turn_becomes_a_stop_id(base, tmp_path):
    """A base whose template closes turns with another token than its eos would run every answer to its limit."""
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "do_sample": true}')
    name_end_of_turn(base, 7)
    assert json.loads((base / "generation_config.json").read_text()) == {"eos_token_id": [2, 7], "do_sample": True}
    assert read_model_folder(base, context_tokens=128).stop_ids == (2, 7)
    (base / "generation_config.json").unlink()
    name_end_of_turn(base, 7)
    assert read_model_folder(base, context_tokens=128).stop_ids == (2, 7)


def test_a_base_that_names_no_stop_id_gets_its_templates(base, tmp_path):
    settings = json.loads((base / "config.json").read_text()) | {"eos_token_id": None}
    (base / "config.json").write_text(json.dumps(settings))
    (base / "generation_config.json").unlink()
    (base / "tokenizer_config.json").unlink()
    name_end_of_turn(base, 7)
    assert read_model_folder(base, context_tokens=128).stop_ids == (7,)


def test_the_demo_base_keeps_its_bytes(tmp_path):
    target = tmp_path / "target"
    materialise(ModelConfig(), target)
    close_thoughts(target)
    name_end_of_turn(target, end_of_turn_id(load_tokenizer(target)))
    for path in target.iterdir():
        assert path.read_bytes() == (base_model_path() / path.name).read_bytes()


@pytest.mark.parametrize("path", ["~nobody-here/base", "~nobody-here/base.gguf"])
def test_the_home_folder_of_nobody_is_not_there(path, tmp_path):
    with pytest.raises(InputError, match=f"model.path {path} (is neither a folder|does not exist)"):
        materialise(config(path), tmp_path / "target")


def test_a_path_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a folder"):
        materialise(config("/nowhere/at/all"), tmp_path / "target")
    with pytest.raises(InputError, match="does not exist"):
        materialise(config(tmp_path / "no.gguf"), tmp_path / "target")


def gguf_header() -> bytes:
    """The first bytes of a GGUF file of version 3 that promises two strings and a tensor."""
    strings = ((b"general.architecture", b"llama"), (b"general.name", "Zoé".encode()))
    fields = (struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value for key, value in strings)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(strings)) + b"".join(fields)


@pytest.mark.parametrize("size", [0, 4, 20, 40, -1, None])
def test_a_gguf_file_that_ends_within_its_header_is_refused(size, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf_header()[:size])
    with pytest.raises(InputError, match=r"cut.gguf cannot be read as a GGUF model: .*Check the file") as caught:
        materialise(config(path), tmp_path / "target")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["models/smolm", "smolm"])
def test_a_misspelt_folder_is_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "models" / "smollm").mkdir(parents=True)
    with pytest.raises(InputError, match=f"model.path {path} is (not in the folder {tmp_path}/models|neither a folder)"):
        materialise(config(path), tmp_path / "target")


def test_a_model_of_the_hub_is_fetched_at_its_revision_and_copied(base, tmp_path, monkeypatch):
    (base / "README.md").write_text("not for training")
    asked = []

    def snapshot_download(name, **how):
        asked.append((name, how))
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    materialise(config("someone/some-model", revision="v1.2"), tmp_path / "target")
    assert asked == [("someone/some-model", {"revision": "v1.2", "allow_patterns": list(MODEL_FILES)})]
    assert not (tmp_path / "target/README.md").exists()
    assert load_model(tmp_path / "target").num_parameters() == load_model(base).num_parameters()


def test_a_hub_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DependencyError, match=r"someone/some-model .*Go online, or give a folder") as caught:
        materialise(config("someone/some-model"), tmp_path / "target")
    assert "\n" not in str(caught.value)


def test_a_target_that_cannot_be_written_is_a_storage_error(base, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="A file stands where a folder is needed"):
        materialise(config(base), tmp_path / "file" / "target")


def test_folders_need_no_torch():
    code = "import sys, itool.train.materialise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(GGUF is None, reason="no .gguf file: `make demo-llm` fetches one, or name one in ITOOL_TEST_GGUF")
@pytest.mark.filterwarnings("ignore")  # a third-party reader
def test_a_gguf_file_becomes_a_model_that_still_knows_things(tmp_path):
    materialise(ModelConfig(path=str(GGUF), dtype="bfloat16"), tmp_path / "target")
    assert "quantization_config" not in json.loads((tmp_path / "target" / "config.json").read_text())
    before = (tmp_path / "target" / "generation_config.json").read_bytes()
    name_end_of_turn(tmp_path / "target", end_of_turn_id(load_tokenizer(tmp_path / "target")))
    assert (tmp_path / "target" / "generation_config.json").read_bytes() == before
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = load_model(tmp_path / "target", dtype="bfloat16")
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
