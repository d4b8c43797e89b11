"""Which part of the data an example belongs to: a property of the seed and its id alone.

So adding, dropping or reordering examples never moves another one, and a larger data set extends every part. A share is therefore met on
average, not to the example.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from itool.config import DataConfig
from itool.records import Example

_TURN = re.compile(r"#turn\d+$")


@dataclass(frozen=True)
class Split:
    """The four disjoint parts, each in the order of the input."""

    warmup: list[Example] = field(default_factory=list)
    buffer: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)


def split_examples(examples: Sequence[Example], config: DataConfig, seed: int, held_out: Sequence[Example] | None = None) -> Split:
    """Divide the data. With a `held_out` set of its own, that set is used whole and nothing is split off for it."""
    split = Split(held_out=list(held_out or ()))
    held_out_share = 0.0 if held_out is not None else config.held_out_fraction
    # Held-out and validation come first on the unit interval: changing the buffer's share must not move an example across them.
    parts = ((held_out_share, split.held_out), (config.validation_fraction, split.validation), (config.buffer_fraction, split.buffer))
    for example in examples:
        place = unit_hash(seed, example.id)
        for share, part in parts:
            if place < share:
                part.append(example)
                break
            place -= share
        else:
            split.warmup.append(example)
    return split


def unit_hash(seed: int, example_id: str) -> float:
    """A number in [0, 1) that is fixed by the seed and the id, uniform over ids.

    The turns of one conversation (`<id>#turn3`) share it: each turn's prompt shows the answers of the turns before it.
    """
    conversation = _TURN.sub("", example_id)
    digest = hashlib.blake2b(f"split:{seed}:{conversation}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
