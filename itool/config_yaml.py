"""Reads the YAML of a configuration: a key that stands twice is an error, and what is wrong is one line."""

from __future__ import annotations

from typing import Any

import yaml


def read_yaml(text: str | bytes) -> Any:
    """A YAML document. Raises yaml.YAMLError, also for a key that stands twice in a mapping: the last would win, and no one would know."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, RecursionError) as error:  # 0x_ looks like a number, and is none
        raise yaml.YAMLError(str(error)) from None


class RepeatedKey(yaml.YAMLError):
    """A key that stands twice in a mapping."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks before merge keys (`<<`) are resolved: a key that overrides a merged one stands there once."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in lines:
                raise RepeatedKey(f"line {line}: key {key.value} stands in line {lines[name]} already")
            lines[name] = line
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""A date is text, as in Helm: no setting is a date, but a run, an image's tag or a revision may be named by one."""


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and in which line, without the excerpt: its marker points at nothing in a message of one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    return f"line {error.problem_mark.line + 1}: " + ", ".join(filter(None, (error.context, error.problem)))
