"""From an example to token ids: the prompt by the model's own chat template, the response verbatim.

A template that knows tools gets them in OpenAI's form. One that ignores them (found out by rendering with and without) gets a system
message that lists them and names the answer's syntax. A response is tokenised by itself and appended, so the prompt's ids are always the
first ids of prompt + response. Nothing here imports torch.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from itool.errors import InputError
from itool.records import Example, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

INSTRUCTION = """\
Here is a list of functions in JSON format that you can invoke:
{tools}
If functions fit, answer only with their calls, as in [first(city="Oslo", days=3), second(flag=true)]; otherwise answer in plain text."""

EVALUATION_QUESTION = """\
Is the assistant's response above, as far as it goes, the right way to answer the request with the tools?
A. incorrect
B. correct
Answer with A or B."""
EVALUATION_OPTIONS = ("A", "B")

TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""Today, for a template that writes the date: a prompt is the same on every day. Llama 3 writes this one where it is told none."""

_RELOAD = "Take the tokenizer's files from the model's source again, or install what the message asks for"
_PROBE_TEXT = "itool probe"
_PROBE = Tool(name="itool_probe", description="itool_probe")


@dataclass(frozen=True)
class _Template:
    """What a tokenizer's chat template does. `leaves_out`: roles whose messages it passes over without a word, without tools and with."""

    shows_tools: bool
    leaves_out: tuple[frozenset[str], frozenset[str]]
    end_of_turn_id: int


_TEMPLATES: WeakKeyDictionary[Any, _Template] = WeakKeyDictionary()


def require_tokenizer(name: str, folder: Path) -> None:
    """Raise InputError when a model folder, which the error calls `name`, has no tokenizer."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InputError(f"{name} has no tokenizer ({', '.join(TOKENIZER_FILES)})", remedy="Copy the tokenizer's files beside the weights")


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a materialised base model. Raises InputError when it or its chat template is missing or broken."""
    require_tokenizer(f"base model {model_dir}", model_dir)
    for path in sorted(model_dir.glob("tokenizer*.json")):
        _check_json(path)
    try:
        tokenizer = _tokenizer_class(model_dir).from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"the tokenizer of base model {model_dir} cannot be loaded: {error}", remedy=_RELOAD) from error
    if not tokenizer.chat_template:
        raise InputError(
            f"base model {model_dir} has no chat template", remedy="Set model.chat_template to a Jinja file, or use an instruct model"
        )
    return tokenizer


def _tokenizer_class(model_dir: Path) -> Any:
    """Who reads the tokenizer. AutoTokenizer knows, but imports torch for seconds, which a tokenizer of no special class need not."""
    path = model_dir / "tokenizer_config.json"
    settings = _check_json(path) if path.is_file() else None
    if isinstance(settings, dict) and settings.get("tokenizer_class") == "TokenizersBackend":
        from transformers import TokenizersBackend  # noqa: PLC0415 - a second, and only stages with a model need it

        return TokenizersBackend
    from transformers import AutoTokenizer  # noqa: PLC0415 - as above

    return AutoTokenizer


def _check_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"tokenizer file {path} is not JSON: {error}", remedy=_RELOAD) from None


def render_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of the tools, the conversation and the opening of the assistant's turn.

    Raises InputError when the template refuses the conversation, or leaves a part of it out.
    """
    return _tokenize(tokenizer, _render(tokenizer, example, _messages(example)))


def response_ids(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of the ground-truth response and of the end of the turn. Raises InputError when the example has only a checker."""
    if example.response is None:
        raise InputError(
            f"example {example.id} has no ground-truth response", remedy="Such data can be searched and evaluated, not trained on directly"
        )
    return [*_tokenize(tokenizer, example.response), end_of_turn_id(tokenizer)]


def token_counts(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, int]:
    """Tokens of the prompt and of the response (0 when the example has only a checker): does the example fit the model's context?"""
    response = 0 if example.response is None else len(response_ids(tokenizer, example))
    return len(render_prompt(tokenizer, example)), response


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes the assistant's turn: what the chat template writes there, else the tokenizer's end of sequence."""
    return _inspect(tokenizer).end_of_turn_id


def opens_thoughts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompt ends within a `<think>` block that the chat template opens: an answer would be a part of the model's thoughts."""
    messages = [{"role": "user", "content": _PROBE_TEXT}]
    tool_lists = (None, [_as_openai(_PROBE)])
    prompts = (_apply(tokenizer, messages, tools, opens_turn=True, which="a question") for tools in tool_lists)
    return any(prompt.rstrip().endswith("<think>") for prompt in prompts)


def evaluation_prompt(tokenizer: PreTrainedTokenizerBase, example: Example, partial_text: str) -> tuple[list[int], list[int]]:
    """The self-evaluation question about a partial response, and the token ids of its options. Eq. (7), arXiv 2501.09766v1.

    Options are "A" = incorrect and "B" = correct, in that order, as the next token of the prompt. About an empty response the question
    joins the request in one turn: many templates refuse two turns of the user, and an empty one of the assistant. Raises InputError when
    the tokenizer cannot tell the options apart.
    """
    messages = _messages(example)
    if partial_text:
        messages.append({"role": "assistant", "content": partial_text})
    if messages[-1]["role"] == "user":
        messages[-1]["content"] += f"\n\n{EVALUATION_QUESTION}"
    else:
        messages.append({"role": "user", "content": EVALUATION_QUESTION})
    text = _render(tokenizer, example, messages)
    prompt = _tokenize(tokenizer, text)
    options = [_next_token(tokenizer, text, prompt, option) for option in EVALUATION_OPTIONS]
    if options[0] == options[1]:
        raise InputError("the tokenizer has no tokens of their own for A and B", remedy="Set search.confidence_weight to 0")
    return prompt, options


def describe_tools(tools: list[Tool]) -> str:
    """One line of JSON per tool, without what every schema repeats: `{"name":..,"description":..,"parameters":{"city":"string; .."}}`.

    Half as many tokens as the JSON Schema itself, and most of a prompt is tools.
    """
    return "\n".join(json.dumps(_describe_tool(tool), ensure_ascii=False, separators=(",", ":")) for tool in tools)


def _describe_tool(tool: Tool) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tool.name}
    if tool.description:
        described["description"] = tool.description
    properties = tool.parameters.get("properties")
    if not isinstance(properties, dict):
        return described | {"parameters": tool.parameters}
    described["parameters"] = {key: _describe_parameter(schema) for key, schema in properties.items()}
    required = tool.parameters.get("required")
    return described | ({"required": required} if required else {})


def _describe_parameter(schema: Any) -> Any:
    """A plain type with its description as one string; anything richer (enums, nested objects) stays a schema."""
    if isinstance(schema, dict) and isinstance(schema.get("type"), str) and schema.keys() <= {"type", "description"}:
        return "; ".join(part for part in (schema["type"], schema.get("description")) if part)
    return schema


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in example.messages]


def _render(tokenizer: PreTrainedTokenizerBase, example: Example, messages: list[dict[str, str]]) -> str:
    template, which, tools = _inspect(tokenizer), f"example {example.id}", None
    if example.tools:
        if template.shows_tools:
            tools = [_as_openai(tool) for tool in example.tools]
        else:
            messages = _with_instruction(messages, INSTRUCTION.format(tools=describe_tools(example.tools)))
    for message in messages:
        if message["role"] in template.leaves_out[tools is not None]:
            raise InputError(f"the model's chat template leaves out the {message['role']} message of {which}")
    return _apply(tokenizer, messages, tools, opens_turn=True, which=which)


def _with_instruction(messages: list[dict[str, str]], instruction: str) -> list[dict[str, str]]:
    """The instruction as a system message, after the conversation's own if it has one."""
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{instruction}"}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _as_openai(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}}


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    tools: list[dict[str, Any]] | None,
    *,
    opens_turn: bool,
    which: str,
) -> str:
    from jinja2 import TemplateError  # noqa: PLC0415 - comes with training

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=opens_turn, tokenize=False, strftime_now=TEMPLATE_DATE.strftime
        )
    except (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"the model's chat template refuses {which}: {error}") from error
    return text


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids without a beginning-of-sequence token: a template that wants one has written it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _next_token(tokenizer: PreTrainedTokenizerBase, text: str, prompt: list[int], option: str) -> int:
    """The token that begins `option` right after the prompt; by itself it may be another one (a leading space)."""
    together = _tokenize(tokenizer, text + option)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt)]
    return _tokenize(tokenizer, option)[-1]


def _inspect(tokenizer: PreTrainedTokenizerBase) -> _Template:
    """What the template does, tried out once per tokenizer."""
    known = _TEMPLATES.get(tokenizer)
    if known is None:
        leaves_out = (_find_left_out(tokenizer, None), _find_left_out(tokenizer, [_as_openai(_PROBE)]))
        known = _TEMPLATES[tokenizer] = _Template(_shows_tools(tokenizer), leaves_out, _find_end_of_turn(tokenizer))
    return known


def _shows_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    messages = [{"role": "user", "content": _PROBE_TEXT}]
    return _PROBE.name in _apply(tokenizer, messages, [_as_openai(_PROBE)], opens_turn=True, which="a tool")


def _find_left_out(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None) -> frozenset[str]:
    """A template that knows no tool results, say, may raise, or go on as if there were none. What raises is refused where it comes."""
    conversations = {"system": ("system", "user"), "user": ("user",), "tool": ("user", "assistant", "tool")}
    left_out = set()
    for role, turns in conversations.items():
        messages = [{"role": turn, "content": _PROBE_TEXT if turn == role else "q"} for turn in turns]
        with suppress(InputError):
            if _PROBE_TEXT not in _apply(tokenizer, messages, tools, opens_turn=True, which=f"a {role} message"):
                left_out.add(role)
    return frozenset(left_out)


def _find_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _PROBE_TEXT}]
    _, shown, tail = _apply(tokenizer, messages, None, opens_turn=False, which="an assistant's turn").rpartition(_PROBE_TEXT)
    if not shown:
        raise InputError(
            "the model's chat template leaves out what the assistant says", remedy="Set model.chat_template to one for text alone"
        )
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found = next((token for token in _tokenize(tokenizer, tail) if token in special), tokenizer.eos_token_id)
    if found is None:
        raise InputError(
            "the chat template ends the assistant's turn without a special token, and the tokenizer has no end-of-sequence token",
            remedy="Set model.chat_template to a template that ends turns with one",
        )
    return int(found)
