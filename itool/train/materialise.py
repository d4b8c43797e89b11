"""Turn `model.path` into one self-contained folder that every later stage and every pod reads: safetensors, tokenizer, chat template.

    demo       the base that ships with iTool
    folder     copied after its parts were checked
    file.gguf  de-quantised, saved as safetensors
    hub id     owner/name; downloaded once, nothing later needs the hub

torch is imported for GGUF files only.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from itool.artifacts.disk import storage_error, storage_remedy
from itool.config import ModelConfig
from itool.data.chat import load_tokenizer, opens_thoughts, require_tokenizer
from itool.demo import base_model_path
from itool.errors import DependencyError, InputError, StorageError
from itool.logs import get_logger
from itool.paths import absolute_path, local_path
from itool.policy.model_folder import read_json, read_stop_ids

NAMED_TEMPLATES = "additional_chat_templates/*.jinja"
"""Templates beside the default one, such as `tool_use`, which transformers takes where there are tools."""
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", NAMED_TEMPLATES, "tokenizer.model", "merges.txt", "*.tiktoken",
)  # fmt: skip
LONGEST_HEADER_BYTES = 100_000_000
"""What the safetensors library reads of a header."""
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
WITHOUT_THOUGHTS = """\
{%- set enable_thinking = false %}{% set rendered %}
<template>{% endset %}{{ rendered }}
{%- if add_generation_prompt and rendered.rstrip().endswith('<think>') %}{{ '\\n</think>\\n\\n' }}{% endif %}
"""
"""Around a chat template: its own way to do without thoughts, where it has one (Qwen's), else an empty block of them (DeepSeek's R1)."""
ModelKind = Literal["demo", "gguf", "folder", "hub"]
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")

_log = get_logger(__name__)


def materialise(config: ModelConfig, target: Path) -> None:
    """Fill the empty folder `target` with the base model that `config.path` names.

    Raises InputError when a part is missing or damaged or the context is too short, DependencyError when the hub does not answer,
    StorageError when `target` cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        _fetch(config, target)
        if config.chat_template is not None:
            _replace_chat_template(local_path(config.chat_template), target)
    except shutil.Error as error:
        raise StorageError(f"base model cannot be copied to {target}: {error}") from None
    except OSError as error:
        message = f"base model {config.path} cannot be written to {target}: {error}"
        raise StorageError(message, remedy=storage_remedy(error)) from None
    check_model_folder(target, context_tokens=config.context_tokens, origin=config.path)


def model_kind(name: str) -> ModelKind:
    """What a `model.path` names. Raises InputError when it is none of these, or no file or folder that is here."""
    path = local_path(name)
    if name == "demo":
        return "demo"
    if path.suffix == ".gguf":
        if path.is_file():
            return "gguf"
        raise InputError(f"model.path {name} does not exist", remedy="Correct the name")
    if path.is_dir():
        return "folder"
    if not _HUB_ID.match(name) or path.exists():
        raise InputError(
            f"model.path {name} is neither a folder, a .gguf file nor a hub id", remedy="Give one of these (owner/name), or demo"
        )
    if path.parent.is_dir():  # a folder whose name is misspelt
        raise InputError(
            f"model.path {name} is not in the folder {absolute_path(path.parent)}",
            remedy="Correct the name, or begin where no folder is called like a hub's owner",
        )
    return "hub"


def _fetch(config: ModelConfig, target: Path) -> None:
    path = local_path(config.path)
    match model_kind(config.path):
        case "demo":
            check_model_folder(base_model_path(), context_tokens=config.context_tokens, origin="demo")
            _copy(base_model_path(), target)
        case "gguf":
            _convert_gguf(path, config, target)
        case "folder":
            supplied = config.chat_template is not None
            check_model_folder(path, context_tokens=config.context_tokens, origin=config.path, template_comes=supplied)
            _copy(path, target)
        case "hub":
            _copy(_download(config), target)


def _copy(source: Path, target: Path) -> None:
    """Copy what a model needs, following links (a hub cache is made of them); nothing else that lies in the folder."""
    for path in sorted({path for pattern in MODEL_FILES for path in source.glob(pattern)}):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def _download(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub ids need it
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    name = config.path + (f" (revision {config.revision})" if config.revision else "")
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=list(MODEL_FILES)))
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        reason = "is gated" if isinstance(error, GatedRepoError) else "does not exist, neither as a folder nor on the hub"
        raise InputError(f"model.path {name} {reason}", remedy="Check the name, or log in with HF_TOKEN") from None
    except (OSError, HfHubHTTPError) as error:
        first_line = str(error).partition("\n")[0]
        raise DependencyError(
            f"base model {name} cannot be downloaded and is no local folder: {first_line}",
            remedy="Go online, or give a folder or a .gguf file as model.path",
        ) from None


def _convert_gguf(path: Path, config: ModelConfig, target: Path) -> None:
    """De-quantise: transformers reads the file, but refuses to save the object it read, so the weights move into a plain model."""
    import torch  # noqa: PLC0415 - takes seconds
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    faults = (ValueError, LookupError, OverflowError, RuntimeError, OSError, struct.error, ImportError, StrictDataclassError)
    dtype = getattr(torch, config.dtype)
    try:
        source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
        quantised = AutoModelForCausalLM.from_pretrained(path.parent, dtype=dtype, **source)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    except faults as error:  # what the readers say of a file that is cut or damaged; nothing is written here
        raise InputError(f"{path} cannot be read as a GGUF model: {error}", remedy="Check the file, and that gguf is installed") from None
    plain_config = quantised.config
    if hasattr(plain_config, "quantization_config"):
        del plain_config.quantization_config
    plain = AutoModelForCausalLM.from_config(plain_config, dtype=dtype)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _replace_chat_template(source: Path, target: Path) -> None:
    try:
        template = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"model.chat_template {source} cannot be read: {error}", remedy="Set it to a Jinja file in UTF-8") from None
    for named in target.glob(NAMED_TEMPLATES):
        named.unlink()
    _write_templates(target, {"default": template})


def _write_templates(target: Path, templates: Mapping[str, str]) -> None:
    """Chat templates by name, as files, which are read before what tokenizer_config.json holds."""
    for name, template in templates.items():
        path = target / (TEMPLATE_FILE if name == "default" else NAMED_TEMPLATES.replace("*", name))
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        document = read_json(settings)
        if document.pop("chat_template", None) is not None:
            settings.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def close_thoughts(folder: Path) -> None:
    """Let a chat template that opens a `<think>` block at the end of the prompt close it there: what is trained on are answers alone.

    A folder whose template opens none is left as it is. Raises InputError for a broken tokenizer or a template whose name is a path,
    StorageError when it cannot be written.
    """
    tokenizer: Any = load_tokenizer(folder)
    if not opens_thoughts(tokenizer):
        return
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"default": tokenizer.chat_template}
    for name in templates:
        if Path(str(name)).name != name:  # the base's own word becomes a file's name
            raise InputError(f"the base model has a chat template named {name!r}, which no file can be", remedy="Rename it or take it out")
    closed = {name: WITHOUT_THOUGHTS.replace("<template>", text.removesuffix("\n")) for name, text in templates.items()}
    try:
        _write_templates(folder, closed)
    except OSError as error:
        raise storage_error(error, folder) from None
    _log.warning("the chat template opens a block of thoughts before each answer; the run's copy closes it, as the data hold answers alone")


def name_end_of_turn(folder: Path, token_id: int) -> None:
    """Make the token that the chat template closes a turn with one of the model's stop ids, in generation_config.json.

    Training ends every answer with it; a policy that did not stop there would run each answer to its limit. A folder that names it is left
    as it is. Raises InputError for a broken configuration, StorageError when it cannot be written.
    """
    known = read_stop_ids(folder)
    if token_id in known:
        return
    stops, path = sorted({*known, token_id}), folder / GENERATION_FILE
    document = (read_json(path) if path.is_file() else {}) | {"eos_token_id": stops}
    try:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise storage_error(error, path) from None
    _log.warning("the chat template's end of turn was no stop id of the base model", token_id=token_id, stop_ids=stops)


def check_model_folder(folder: Path, *, context_tokens: int, origin: str, template_comes: bool = False) -> None:
    """Raise InputError for a folder that a later stage could not use. `template_comes`: `model.chat_template` will supply the template."""
    name = f"base model {origin}" + (f" ({folder})" if str(folder) != origin else "")
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} has no config.json", remedy="Give a folder in Hugging Face layout")
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{name}: config.json names no model_type", remedy="Give a folder in Hugging Face layout")
    if (folder / "adapter_config.json").is_file():  # transformers would load it with the model, vLLM would not
        raise InputError(f"{name} holds an adapter (adapter_config.json)", remedy="Merge it into the weights, or remove its files")
    if not isinstance(config.get("vocab_size"), int):
        raise InputError(f"{name}: config.json names no vocab_size, so it is no model of text alone", remedy="Use another base")
    _check_context(name, config, context_tokens)
    _check_weights(name, folder)
    require_tokenizer(name, folder)
    if not template_comes and not _has_chat_template(folder):
        raise InputError(f"{name} has no chat template", remedy=f"Set model.chat_template to a Jinja file, or add {TEMPLATE_FILE}")


def _check_context(name: str, config: dict[str, Any], context_tokens: int) -> None:
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and longest < context_tokens:
        raise InputError(f"{name} reads {longest} tokens, model.context_tokens is {context_tokens}", remedy=f"Set it to {longest} or less")


def _check_weights(name: str, folder: Path) -> None:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        listed = set(read_json(index).get("weight_map", {}).values())
        if missing := sorted(listed - set(found)):
            raise InputError(f"{name} has no {missing[0]}, which {index.name} lists", remedy="Download the model again")
    if not found:
        other = "; it has weights in another format" if [*folder.glob("*.bin"), *folder.glob("*.pt")] else ""
        raise InputError(f"{name} has no *.safetensors{other}", remedy="Save the model with save_pretrained")
    for file in found:
        if not _is_whole(folder / file):
            raise InputError(f"{name}: {file} is truncated or damaged", remedy="Download the model again")


def _is_whole(weights: Path) -> bool:
    """Whether a safetensors file's size is the one that its header promises; reads the header only."""
    size = weights.stat().st_size
    with weights.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8 or (header_bytes := int.from_bytes(prefix, "little")) > min(size - 8, LONGEST_HEADER_BYTES):
            return False
        try:
            tensors = json.loads(file.read(header_bytes))
            ends = [tensor["data_offsets"][1] for tensor_name, tensor in tensors.items() if tensor_name != "__metadata__"]
            return bool(size == 8 + header_bytes + max(ends, default=0))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False


def _has_chat_template(folder: Path) -> bool:
    if (folder / TEMPLATE_FILE).is_file() or (folder / "chat_template.json").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))
