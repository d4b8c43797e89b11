"""Which part of the data an example belongs to: a property of the seed and its id alone, unless it begins as an earlier one does.

So adding, dropping or reordering examples moves no other conversation, and a larger data set extends every part. A share is therefore met
on average, not to the example. Examples that offer the same tools and open with the same messages are one problem, whatever their ids are:
they go where the first of them goes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from itool.config import DataConfig
from itool.data.compare import compose
from itool.records import Example

_TURN = re.compile(r"#turn\d+$")


@dataclass(frozen=True)
class Split:
    """The four disjoint parts, each in the order of the input. `repeats_held_out` counts training examples that are in none of them."""

    warmup: list[Example] = field(default_factory=list)
    buffer: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    repeats_held_out: int = 0


def split_examples(examples: Sequence[Example], config: DataConfig, seed: int, held_out: Sequence[Example] | None = None) -> Split:
    """Divide the data. With a `held_out` set of its own, that set is used whole and nothing is split off for it.

    Training examples that open as one of that set does are left out and counted: they would have shown its answer.
    """
    reserved = {opening_digest(example) for example in held_out or ()}
    split = Split(held_out=list(held_out or ()))
    held_out_share = 0.0 if held_out is not None else config.held_out_fraction
    # Held-out and validation come first on the unit interval: changing the buffer's share must not move an example across them.
    parts = ((held_out_share, split.held_out), (config.validation_fraction, split.validation), (config.buffer_fraction, split.buffer))
    leaders: dict[bytes, str] = {}
    repeats = 0
    for example in examples:
        opening = opening_digest(example)
        if opening in reserved:
            repeats += 1
            continue
        place = unit_hash(seed, leaders.setdefault(opening, example.id))
        for share, part in parts:
            if place < share:
                part.append(example)
                break
            place -= share
        else:
            split.warmup.append(example)
    return replace(split, repeats_held_out=repeats)


def opening_digest(example: Example) -> bytes:
    """What an example asks at first: a digest of its tools, in any order, and of its messages up to the first answer to a user.

    Texts that differ in Unicode's form alone are one, as they are to many tokenizers.
    """
    tools = sorted(compose(json.dumps(tool.model_dump(), sort_keys=True, ensure_ascii=False)) for tool in example.tools)
    opening: list[tuple[str, str]] = []
    for message in example.messages:
        if message.role == "assistant" and any(role == "user" for role, _ in opening):
            break
        opening.append((message.role, compose(message.content)))
    return hashlib.blake2b(json.dumps([tools, opening]).encode(), digest_size=16).digest()


def unit_hash(seed: int, example_id: str) -> float:
    """A number in [0, 1) that is fixed by the seed and the id, uniform over ids.

    The turns of one conversation (`<id>#turn3`) share it: each turn's prompt shows the answers of the turns before it.
    """
    conversation = _TURN.sub("", example_id)
    digest = hashlib.blake2b(f"split:{seed}:{conversation}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
