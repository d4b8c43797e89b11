"""From token ids to text and back to positions: after which token is which character complete?

Steps are cut where the *text* closes an argument, but a step is a run of *token ids*. The tree never encodes text again; it reads the ids
that the policy sampled, once per sample. A byte-level tokenizer (Llama 3, Qwen, SmolLM2, the demo base) is read from a table of bytes per
token; any other one through its own `decode`, prefix by prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What the search needs of a tokenizer; every Hugging Face tokenizer has it."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """The text of some token ids, special tokens left out. `ends[i]` counts the characters that are complete after token i."""

    text: str
    ends: list[int]


class TokenReader:
    """Reads token ids under one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._pieces = _byte_pieces(tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out; exactly the tokenizer's own."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def read(self, token_ids: Sequence[int]) -> Reading:
        """The text of the ids and where each token ends in it. `ends` never falls, and its last value is the text's length."""
        pieces = self._pieces
        if pieces is not None and all(token in pieces for token in token_ids):
            reading = _read_bytes([pieces[token] for token in token_ids])
            if reading is not None:
                return reading
        return self._read_prefixes(token_ids)

    def _read_prefixes(self, token_ids: Sequence[int]) -> Reading:
        """The slow way, right for every tokenizer: the text of each prefix, less an unfinished character at its end."""
        text = self.decode(token_ids)
        lengths = (min(len(self.decode(token_ids[:end]).rstrip("\ufffd")), len(text)) for end in range(1, len(token_ids)))
        return Reading(text, [*accumulate(lengths, max), len(text)] if token_ids else [])


def _read_bytes(pieces: list[bytes]) -> Reading | None:
    """Join the bytes of the tokens; None when they are no UTF-8 (an unfinished character, or a model that samples noise)."""
    joined = b"".join(pieces)
    try:
        text = joined.decode("utf-8")
    except UnicodeDecodeError:
        return None
    byte_ends = list(accumulate(map(len, pieces)))
    if len(text) == len(joined):
        return Reading(text, byte_ends)
    complete = [0] * (len(joined) + 1)  # characters complete after so many bytes
    position = 0
    for count, character in enumerate(text, start=1):
        width = len(character.encode())
        complete[position + 1 : position + width] = [count - 1] * (width - 1)
        position += width
        complete[position] = count
    return Reading(text, [complete[end] for end in byte_ends])


def _byte_pieces(tokenizer: Any) -> dict[int, bytes] | None:
    """Bytes of every token of a byte-level tokenizer, nothing for a special one; None when the tokenizer is of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    added = backend.get_added_tokens_decoder()
    alphabet = _byte_alphabet()
    pieces: dict[int, bytes] = {}
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index in added:
            pieces[index] = b"" if added[index].special else added[index].content.encode()
        elif all(sign in alphabet for sign in token):
            pieces[index] = bytes(alphabet[sign] for sign in token)
    return pieces


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE (GPT-2) writes for each byte, inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}
