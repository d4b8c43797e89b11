"""Reads the YAML of a configuration: a key that stands twice is an error, and what is wrong is one line."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 100_000
"""A configuration has some hundred."""


def read_yaml(text: str | bytes) -> Any:
    """A YAML document. Raises yaml.YAMLError, also for a key that stands twice in a mapping: the last would win, and no one would know."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, RecursionError) as error:  # 0x_ looks like a number, and is none
        raise yaml.YAMLError(str(error)) from None


class RepeatedKey(yaml.YAMLError):
    """A key that stands twice in a mapping."""


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Counts what a node is once every alias in it is followed: ten lines of aliases to aliases can be a billion values."""
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if node is None:
            return None
        line = node.start_mark.line + 1
        if not is_alias:
            inner = node.value if isinstance(node.value, list) else ()
            parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in parts)
            if self._sizes[id(node)] > MOST_NODES:
                raise yaml.YAMLError(f"line {line}: with its aliases followed it holds more than {MOST_NODES} values")
        elif id(node) not in self._sizes:
            raise yaml.YAMLError(f"line {line}: with its aliases followed it holds itself")
        return node

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
