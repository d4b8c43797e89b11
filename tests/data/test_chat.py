"""Prompts and responses as token ids, for a template that shows tools and for one that ignores them. Real tokenizers, trained here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from itool.demo import base_model_path
from itool.demo.prompt import CHAT_TEMPLATE
from itool.errors import InputError
from itool.records import Example, Message, Tool, ToolCall

pytest.importorskip("transformers", reason="needs the train extra")
from transformers import AutoTokenizer

from itool.data import chat

CHATML = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{%- endif -%}
{%- if message.role == 'tool' -%}{{ raise_exception('no tool turns here') }}{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
DEMO_TOKENS = ["<|pad|>", "<|end|>", "<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TOOL = Tool(
    name="get_weather",
    description="Weather of a city",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Which city"}, "unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["city"],
    },
)
EXAMPLE = Example(
    id="e1",
    messages=[Message(role="user", content="Weather in Bern?")],
    tools=[TOOL],
    calls=[ToolCall(name="get_weather", arguments={"city": "Bern"})],
    response='[get_weather(city="Bern")]',
)


def write_tokenizer(folder: Path, template: str | None, special: list[str], eos: str, *, prefix_space: bool = False) -> Path:
    """A byte-level BPE without merges to speak of, saved as a base model's folder holds it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["get_weather city Bern A B"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    fast.chat_template = template
    fast.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chat.load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chatml"), CHATML, CHATML_TOKENS, "<|im_end|>"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chat.load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("demo"), CHAT_TEMPLATE, DEMO_TOKENS, "<|end|>"))


def test_a_template_that_knows_tools_gets_them(demo: Any) -> None:
    text = demo.decode(chat.render_prompt(demo, EXAMPLE))
    assert text == "<|tools|>\nget_weather(city:string,unit?:C|F) Weather of a city\n<|user|>Weather in Bern?<|assistant|>"


def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day(tmp_path: Path) -> None:
    dated = "{%- set date = strftime_now('%d %b %Y') -%}{{ date + '\\n' }}" + CHAT_TEMPLATE
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, dated, DEMO_TOKENS, "<|end|>"))
    assert tokenizer.decode(chat.render_prompt(tokenizer, EXAMPLE)).startswith("26 Jul 2024\n<|tools|>")


def test_a_template_that_ignores_tools_gets_an_instruction(chatml: Any) -> None:
    text = chatml.decode(chat.render_prompt(chatml, EXAMPLE))
    assert text.startswith("<|im_start|>system\nHere is a list of functions in JSON format that you can invoke:\n{")
    assert '"city":"string; Which city","unit":{"type":"string","enum":["C","F"]}},"required":["city"]}' in text
    assert text.endswith("<|im_end|>\n<|im_start|>user\nWeather in Bern?<|im_end|>\n<|im_start|>assistant\n")


def test_the_instruction_joins_a_system_message(chatml: Any) -> None:
    example = EXAMPLE.model_copy(update={"messages": [Message(role="system", content="Be brief."), *EXAMPLE.messages]})
    text = chatml.decode(chat.render_prompt(chatml, example))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nHere is a list")
    assert text.count("<|im_start|>system") == 1


def test_without_tools_nothing_is_added(chatml: Any) -> None:
    text = chatml.decode(chat.render_prompt(chatml, EXAMPLE.model_copy(update={"tools": []})))
    assert "list of functions" not in text


@pytest.mark.parametrize(("name", "end"), [("demo", "<|end|>"), ("chatml", "<|im_end|>")])
def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(name: str, end: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    prompt, response = chat.render_prompt(tokenizer, EXAMPLE), chat.response_ids(tokenizer, EXAMPLE)
    text = tokenizer.decode(prompt) + EXAMPLE.response + end
    assert prompt + response == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert response[-1] == chat.end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_a_tokenizer_that_begins_every_text_with_a_token_adds_none_to_prompt_and_response(tmp_path: Path) -> None:
    """As Llama's does: the template has written it already."""
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = chat.load_tokenizer(write_tokenizer(tmp_path, CHATML, [*CHATML_TOKENS, "<s>"], "<|im_end|>"))
    expected = chat.render_prompt(tokenizer, EXAMPLE), chat.response_ids(tokenizer, EXAMPLE)
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    assert tokenizer("x")["input_ids"][0] == begin
    assert (chat.render_prompt(tokenizer, EXAMPLE), chat.response_ids(tokenizer, EXAMPLE)) == expected


def test_the_end_of_turn_is_the_templates_and_not_the_end_of_the_sequence(tmp_path: Path) -> None:
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, CHATML, [*CHATML_TOKENS, "</s>"], "</s>"))
    assert chat.end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("name", ["demo", "chatml"])
def test_self_evaluation_asks_for_one_of_two_tokens(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids, options = chat.evaluation_prompt(tokenizer, EXAMPLE, '[get_weather(city="')
    assert [tokenizer.decode([option]) for option in options] == ["A", "B"]
    text = tokenizer.decode(ids)
    assert text.index("Weather in Bern?") < text.index('[get_weather(city="') < text.index("A. incorrect") < text.index("B. correct")
    assert chat.evaluation_prompt(tokenizer, EXAMPLE, "")[1] == options


@pytest.mark.parametrize("partial", ["", "[get_weather("])
def test_self_evaluation_never_has_the_user_speak_twice_in_a_row(tmp_path: Path, partial: str) -> None:
    alternating = """{%- for m in messages %}{% if not m.content or (loop.previtem is defined and loop.previtem.role == m.role) %}\
{{ raise_exception('roles must alternate, and nobody says nothing') }}{% endif %}{% endfor -%}"""
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, alternating + CHATML, CHATML_TOKENS, "<|im_end|>"))
    text = tokenizer.decode(chat.evaluation_prompt(tokenizer, EXAMPLE, partial)[0])
    assert text.index("Weather in Bern?") < text.index("A. incorrect") < text.index("B. correct")


def test_an_option_is_the_token_that_follows_the_prompt_and_not_the_one_that_it_is_alone(tmp_path: Path) -> None:
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, CHATML, CHATML_TOKENS, "<|im_end|>", prefix_space=True))
    assert [tokenizer.tokenize(option) for option in "AB"] == [["ĠA"], ["ĠB"]]
    assert tokenizer.convert_ids_to_tokens(chat.evaluation_prompt(tokenizer, EXAMPLE, "")[1]) == ["A", "B"]


def test_data_without_a_response_cannot_be_trained_on(demo: Any) -> None:
    with pytest.raises(InputError, match="example e1 has no ground-truth response"):
        chat.response_ids(demo, EXAMPLE.model_copy(update={"response": None}))


def test_a_conversation_that_the_template_refuses_names_its_example(chatml: Any) -> None:
    example = EXAMPLE.model_copy(update={"messages": [*EXAMPLE.messages, Message(role="tool", content="12 C")]})
    with pytest.raises(InputError, match="refuses example e1: no tool turns here"):
        chat.render_prompt(chatml, example)


@pytest.mark.parametrize(
    "hostile",
    ["{{ 1 // 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ ''.__class__.__mro__ }}"],
)
def test_a_template_that_fails_in_its_own_way_is_refused(tmp_path: Path, hostile: str) -> None:
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, hostile, CHATML_TOKENS, "<|im_end|>"))
    with pytest.raises(InputError, match="the model's chat template refuses"):
        chat.render_prompt(tokenizer, EXAMPLE)


def test_a_message_that_the_template_would_pass_over_is_refused(tmp_path: Path) -> None:
    """As Phi 3's template does with tool results: the answer would be learned without what it answers."""
    silent = CHATML.replace("{{ raise_exception('no tool turns here') }}{%- endif -%}", "{%- continue -%}{%- endif -%}")
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, silent, CHATML_TOKENS, "<|im_end|>"))
    assert "Weather in Bern?" in tokenizer.decode(chat.render_prompt(tokenizer, EXAMPLE))
    answered = [*EXAMPLE.messages, Message(role="assistant", content="[f()]"), Message(role="tool", content="12 C")]
    with pytest.raises(InputError, match="leaves out the tool message of example e1"):
        chat.render_prompt(tokenizer, EXAMPLE.model_copy(update={"messages": answered}))


def test_a_template_for_tools_is_tried_out_with_tools(tmp_path: Path) -> None:
    """A model may have one beside a default that passes over the results of tools."""
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, CHATML, CHATML_TOKENS, "<|im_end|>"))
    silent = CHATML.replace("{{ raise_exception('no tool turns here') }}{%- endif -%}", "{%- continue -%}{%- endif -%}")
    knowing = "{{ tools[0].function.name }}" + silent.replace("{%- continue -%}", "")
    tokenizer.chat_template = {"default": silent, "tool_use": knowing}
    answered = [*EXAMPLE.messages, Message(role="assistant", content="[f()]"), Message(role="tool", content="12 C")]
    example = EXAMPLE.model_copy(update={"messages": answered})
    assert "12 C" in tokenizer.decode(chat.render_prompt(tokenizer, example))
    with pytest.raises(InputError, match="leaves out the tool message of example e1"):
        chat.render_prompt(tokenizer, example.model_copy(update={"tools": []}))


def test_a_list_of_tools_that_would_go_into_a_system_message_nobody_sees_is_refused(tmp_path: Path) -> None:
    silent = CHATML.replace("raise_exception('no tool turns here')", "''").replace("message.role == 'tool'", "false")
    silent = "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}" + silent
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, silent, CHATML_TOKENS, "<|im_end|>"))
    with pytest.raises(InputError, match="leaves out the system message of example e1"):
        chat.render_prompt(tokenizer, EXAMPLE)


def test_a_template_that_shows_no_text_names_no_end_of_turn(tmp_path: Path) -> None:
    """Those of models that see images take lists of parts only, and show nothing of a text."""
    parts = CHATML.replace("message.content +", "(message.content[0].text if message.content is not string else '') +")
    tokenizer = chat.load_tokenizer(write_tokenizer(tmp_path, parts, CHATML_TOKENS, "<|im_end|>"))
    with pytest.raises(InputError, match="leaves out what the assistant says"):
        chat.end_of_turn_id(tokenizer)


def test_a_folder_without_tokenizer_or_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tokenizer"):
        chat.load_tokenizer(tmp_path)
    folder = write_tokenizer(tmp_path / "model", None, CHATML_TOKENS, "<|im_end|>")
    with pytest.raises(InputError, match="has no chat template"):
        chat.load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"})[:-1])
    with pytest.raises(InputError, match="is not JSON"):
        chat.load_tokenizer(folder)


@pytest.mark.slow
def test_a_plain_tokenizer_is_read_without_torch_as_auto_tokenizer_reads_it() -> None:
    base = base_model_path()
    program = "import sys, pathlib, itool.data.chat as chat; chat.load_tokenizer(pathlib.Path(sys.argv[1])); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(base)], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
    ours, theirs = chat.load_tokenizer(base), AutoTokenizer.from_pretrained(base, local_files_only=True)
    assert (type(ours), ours.init_kwargs) == (type(theirs), theirs.init_kwargs)
