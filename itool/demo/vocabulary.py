"""The base's tokenizer: a small byte-level BPE in which a word is the same tokens wherever it stands.

Spaces are tokens of their own and digits are single. So the `Friday` of a query, of a schema and of an argument are one token sequence, and
copying is all that a small model has to learn; with the usual leading-space words each would have two spellings.
"""

from __future__ import annotations

from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from itool.demo.prompt import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, render_prompt
from itool.demo.task import Split, drafts

VOCABULARY_SIZE = 1536
CONTEXT_TOKENS = 1024
TRAINING_TEXTS = 12_000
_PIECES = r'="|[A-Za-z]+|[0-9]|\s|[^A-Za-z0-9\s]'


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on both training distributions (never on held-out text) and dress it with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _texts(seed: int) -> list[str]:
    shares: dict[Split, float] = {"pretrain": 0.75, "train": 0.25}
    texts = []
    for split, share in shares.items():
        for draft in islice(drafts(split, seed), int(TRAINING_TEXTS * share)):
            prompt = render_prompt(draft.offers, draft.query)
            for token in SPECIAL_TOKENS:
                prompt = prompt.replace(token, " ")
            texts += [prompt, draft.response]
    return texts
