"""A small byte-level BPE tokenizer, trained in the process, whose merges straddle syntactic boundaries (`",`, `)]`, `=1`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CORPUS = [
    '[book_table(city="Rome",people=2,day="next Friday"), get_weather(city="Oslo")]',
    '[get_weather(city="Paris", unit="celsius"), set_alarm(time="7:30", days=["Mon","Tue"])]',
    "I'm sorry, none of the tools fits. Could you tell me more? Thanks!",
] * 4


class OpaqueTokenizer:
    """The same tokens with nothing but `decode`, as a tokenizer that is not byte-level."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self._inner.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


@cache
def byte_tokenizer() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=5
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False, model_max_length=10_000
    )
