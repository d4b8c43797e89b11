"""A small byte-level BPE tokenizer, trained in the process, whose merges straddle syntactic boundaries (`",`, `)]`, `=1`)."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
CORPUS = [
    '[book_table(city="Rome",people=2,day="next Friday"), get_weather(city="Oslo")]',
    '[get_weather(city="Paris", unit="celsius"), set_alarm(time="7:30", days=["Mon","Tue"])]',
    "I'm sorry, none of the tools fits. Could you tell me more? Thanks!",
] * 4


class ByteTokenizer:
    """The part of a Hugging Face fast tokenizer that the search uses."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend_tokenizer.encode(text).ids
        return ids

    @property
    def end_id(self) -> int:
        return int(self.backend_tokenizer.token_to_id(END))


class OpaqueTokenizer:
    """The same tokens with nothing but `decode`, as a tokenizer that is not byte-level."""

    def __init__(self, inner: ByteTokenizer) -> None:
        self._inner = inner

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return self._inner.decode(token_ids, skip_special_tokens=skip_special_tokens)


@cache
def byte_tokenizer() -> ByteTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=5
    )
    backend.train_from_iterator(CORPUS, trainer)
    return ByteTokenizer(backend)
