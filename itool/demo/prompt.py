"""The prompt as text: the chat template that ships with the base, and the same in Python for pre-training.

Rendering a million prompts through Jinja would take longer than training on them; a test holds the two renderings equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from itool.demo.compose import Offer
from itool.demo.values import type_tag

TOOLS, SYSTEM, USER, ASSISTANT, TOOL, END, PAD = (
    "<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|pad|>",
)  # fmt: skip
SPECIAL_TOKENS = (PAD, END, TOOLS, SYSTEM, USER, ASSISTANT, TOOL)

CHAT_TEMPLATE = """\
{%- macro tag(schema) -%}
{%- if schema.enum is defined -%}{{ schema.enum | join('|') }}
{%- elif schema.format is defined -%}{{ schema.format }}
{%- elif schema.type == 'array' -%}list
{%- else -%}{{ schema.type | default('any') }}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{- '<|tools|>' -}}
{%- for entry in tools -%}
{%- set tool = entry.function if entry.function is defined else entry -%}
{%- set parameters = tool.parameters | default({}) -%}
{%- set required = parameters.required | default([]) -%}
{{- '\\n' ~ tool.name ~ '(' -}}
{%- for name, schema in (parameters.properties | default({})).items() -%}
{{- (',' if not loop.first else '') ~ name ~ ('' if name in required else '?') ~ ':' ~ tag(schema) -}}
{%- endfor -%}
{{- ')' ~ (' ' ~ tool.description if tool.description else '') -}}
{%- endfor -%}
{{- '\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|' ~ message.role ~ '|>' ~ message.content -}}
{%- if message.role == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def render_offer(offer: Offer) -> str:
    """One tool as one line of the prompt."""
    spec, version = offer
    params = (f"{param.names[version]}{'?' if param.optional else ''}:{type_tag(param.kind, param.choices)}" for param in spec.params)
    return f"{spec.name}({','.join(params)}) {spec.about}"


def render_prompt(offers: Sequence[Offer], query: str) -> str:
    """What the chat template makes of the tools and one user message, generation prompt included."""
    tools = "".join("\n" + render_offer(offer) for offer in offers)
    return f"{TOOLS}{tools}\n{USER}{query}{ASSISTANT}" if offers else f"{USER}{query}{ASSISTANT}"
