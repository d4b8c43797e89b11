"""From the configuration's `data` section to examples, and a count of what could not be used."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from itool.config import DataConfig
from itool.data.sources import openai, seal_tools, toolace, toolbench, xlam
from itool.data.sources.record import Converted, Dropped, Found
from itool.data.sources.rows import read_rows
from itool.errors import ConfigError, InputError
from itool.records import Example


@dataclass(frozen=True)
class Loaded:
    """Usable examples and why the others are not.

    `held_out` is None when the data have no set of their own for it. `dropped` counts unusable examples of both sets by reason.
    `repeated` counts exact repetitions that were read once (only where ids are made from the content): nothing is lost with them.
    `left_out` counts usable examples of both sets beyond `count` and `held_out_count`.
    """

    examples: list[Example]
    held_out: list[Example] | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    left_out: int = 0

    @property
    def picked(self) -> int:
        """Examples of both sets that are used."""
        return len(self.examples) + len(self.held_out or ())

    @property
    def incoming(self) -> int:
        """Examples that the data hold, usable or not, picked or not."""
        return self.picked + self.left_out + sum(self.dropped.values())


def load_examples(config: DataConfig) -> Loaded:
    """Read training data and, when it is configured, held-out data of the same format.

    Raises InputError with file and line for broken data, for an id that stands for two examples, and when nothing is usable;
    DependencyError when the hub does not answer; ConfigError for the demo, which has nothing to read. `count` and `held_out_count` pick
    examples by the hash of their ids, so that a sorted file gives a fair sample; they are applied after `dropped` was counted.
    """
    if config.source == "demo" or config.path is None:
        raise ConfigError("data.source demo is generated, not loaded", remedy="Use itool.demo.task.generate")
    pool = seal_tools.read_pool(seal_tools.find_pool(config)) if config.source == "seal_tools" else seal_tools.Pool()
    seen: dict[str, Found] = {}
    dropped: Counter[str] = Counter()
    examples, repeated = _collect(_convert(config, config.path, pool), seen, dropped)
    _expect_some(examples, config.path, dropped)
    usable, held_out = len(examples), None
    if config.held_out_path is not None:
        seen = {example_id: found for example_id, found in seen.items() if found.named}  # an id of the content may stand in both: split.py
        held_out, more = _collect(_convert(config, config.held_out_path, pool, held_out=True), seen, dropped)
        repeated += more
        _expect_some(held_out, config.held_out_path, dropped)
        usable += len(held_out)
        held_out = pick(held_out, config.held_out_count)
    loaded = Loaded(pick(examples, config.count), held_out, dropped, repeated)
    return replace(loaded, left_out=usable - loaded.picked)


def _convert(config: DataConfig, path: str, pool: seal_tools.Pool, *, held_out: bool = False) -> Iterator[Converted]:
    other = config.held_out_path if path == config.path else None
    rows = read_rows(path, excluding=[other, pool.path])
    match config.source:
        case "toolace":
            return toolace.convert(rows)
        case "xlam":
            return xlam.convert(rows, held_out=held_out)
        case "toolbench":
            return toolbench.convert(rows)
        case "openai":
            return openai.convert(rows)
        case "seal_tools":
            return seal_tools.convert(rows, pool, config)
        case "demo":
            raise ConfigError("data.source demo is generated, not loaded")


def _collect(converted: Iterable[Converted], seen: dict[str, Found], dropped: Counter[str]) -> tuple[list[Example], int]:
    """Keep what is usable. Ids that the data name are unique over training and held-out data together: a repetition would be a leak."""
    examples, repeated = [], 0
    for item in converted:
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
            continue
        first = seen.setdefault(item.example.id, item)
        if first is item:
            examples.append(item.example)
        elif item.named:
            raise InputError(
                f"{item.where}: id {item.example.id!r} stands at {first.where} already", remedy="Give every example an id of its own"
            )
        else:
            repeated += 1
    return examples, repeated


def _expect_some(examples: list[Example], path: str, dropped: Counter[str]) -> None:
    if not examples:
        if not dropped:
            raise InputError(f"{path} holds no row", remedy="Give a file with examples")
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
        raise InputError(f"no example of {path} can be used ({reasons})", remedy="Check data.source: does the format fit the file?")


def pick(examples: list[Example], count: int | None) -> list[Example]:
    """At most `count` examples, those whose ids hash lowest, in the order in which they came."""
    if count is None or len(examples) <= count:
        return examples
    drawn = sorted((hashlib.blake2b(f"pick:{example.id}".encode(), digest_size=8).digest(), example.id) for example in examples)
    chosen = {example_id for _, example_id in drawn[:count]}
    return [example for example in examples if example.id in chosen]
