"""Key-value caches of prompts that were computed before: the nodes of a search tree extend one prompt, so most of it is known already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

BLOCK_TOKENS = 16
"""Prefixes are looked up at multiples of this length."""


class PrefixCache:
    """Least recently used caches [layers, 2, K, T, D] by their token ids, at most `capacity_bytes` of them."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._blocks: dict[int, tuple[int, ...]] = {}

    def longest(self, ids: Sequence[int], *, at_most: int) -> tuple[int, Tensor | None]:
        """How many leading tokens of `ids` are known, and a cache that begins with them; (0, None) when there is none."""
        wanted = tuple(ids)
        keys = _block_keys(wanted[:at_most])
        for number in range(len(keys), 0, -1):
            owner = self._blocks.get(keys[number - 1])
            length = number * BLOCK_TOKENS
            if owner is not None and owner[:length] == wanted[:length]:
                self._entries.move_to_end(owner)
                length = _common_length(owner, wanted, start=length, stop=at_most)
                return length, self._entries[owner]
        return 0, None

    def add(self, ids: Sequence[int], cache: Tensor) -> None:
        """Remember the cache of a whole prompt."""
        owner = tuple(ids)
        if owner in self._entries or cache.nbytes > self._capacity:
            return
        self._entries[owner] = cache
        self._bytes += cache.nbytes
        self._blocks.update(dict.fromkeys(_block_keys(owner), owner))
        while self._bytes > self._capacity:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        owner, cache = self._entries.popitem(last=False)
        self._bytes -= cache.nbytes
        for key in _block_keys(owner):
            if self._blocks.get(key) == owner:
                del self._blocks[key]


def _block_keys(ids: tuple[int, ...]) -> list[int]:
    """One key per full block, each of everything up to its end."""
    keys: list[int] = []
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        keys.append(hash((keys[-1] if keys else 0, ids[start : start + BLOCK_TOKENS])))
    return keys


def _common_length(first: tuple[int, ...], second: tuple[int, ...], *, start: int, stop: int) -> int:
    length = start
    limit = min(len(first), len(second), stop)
    while length < limit and first[length] == second[length]:
        length += 1
    return length
