"""Reproduce the base model from nothing: `python -m itool.demo.pretrain --output DIR`.

First some hundred updates of pure copying and key-value recall over random tokens, which build the attention patterns that tool calls need;
then the general distribution (general.py), from one small tool to six. Matrices are trained by Muon, the rest by AdamW: AdamW alone did not
learn the task in this budget. The loss is taken on response tokens only, and only these get logits. Every random choice comes from the
seed; the digest of the weights is the same on the same processor and number of threads (docs/demo.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from itool.demo.compose import Draft
from itool.demo.exact_match import exact_match
from itool.demo.general import draft_example
from itool.demo.prompt import ASSISTANT, END, SPECIAL_TOKENS, USER, render_prompt
from itool.demo.task import drafts
from itool.demo.vocabulary import CONTEXT_TOKENS, train_tokenizer
from itool.muon import Muon

EncodedExample = tuple[list[int], int]
"""Token ids of prompt and response, and the length of the prompt."""

PHASES = ((0.12, 2, 1), (0.3, 4, 2), (1.0, 6, 3))
"""Up to which share of the tokens, how many candidate tools and how many calls an example has at most."""

ANSWERED_AT_ONCE = 100
DIGESTED_DRAFTS = 1_000


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    seed: int = 1
    tokens: int = 17_000_000
    copy_exercises: int = 20_000
    batch_tokens: int = 6_144
    matrix_learning_rate: float = 8e-3
    other_learning_rate: float = 3e-3
    decay_from: float = 0.55
    open_tokens: int = 4_000_000
    open_share: float = 0.5
    open_rate: float = 0.4
    pool: int = 2_048
    layers: int = 4
    width: int = 128
    heads: int = 4
    feed_forward: int = 384
    threads: int = 1


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama in float32."""
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def open_names(recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> dict[str, float]:
    """The second part: tools named by words that the first part never put there, so that a name is read and not guessed.

    Without it, the embeddings of these words stay untrained as names, and a LoRA adapter, which leaves embeddings alone, cannot mend that:
    after the same warm-up the loss was twice as high as with trained embeddings.
    """
    second = replace(
        recipe,
        seed=recipe.seed + 1,
        tokens=recipe.open_tokens,
        copy_exercises=0,
        decay_from=0.1,
        matrix_learning_rate=recipe.matrix_learning_rate * recipe.open_rate,
        other_learning_rate=recipe.other_learning_rate * recipe.open_rate,
    )
    return train(second, model, tokenizer, output, checkpoint_seconds=math.inf, openness=recipe.open_share)


def train(
    recipe: Recipe,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    *,
    checkpoint_seconds: float,
    openness: float = 0.0,
) -> dict[str, float]:
    """Run the recipe; log a line every hundred updates and save a loadable checkpoint now and then. Returns the counts."""
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    muon = Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=0.05)
    adamw = torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    started = saved = time.monotonic()
    tokens, updates, recent = 0, 0, 0.0
    for batch in _batches(recipe, tokenizer, openness):
        loss = _response_loss(model, batch, tokenizer.pad_token_id)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        factor = _schedule(updates, tokens / recipe.tokens, recipe)
        muon.param_groups[0]["lr"] = recipe.matrix_learning_rate * factor
        muon.step()
        adamw.param_groups[0]["lr"] = recipe.other_learning_rate * factor
        adamw.step()
        model.zero_grad(set_to_none=True)
        updates, tokens = updates + 1, tokens + sum(len(ids) for ids, _ in batch)
        recent = loss.item() if updates == 1 else 0.98 * recent + 0.02 * loss.item()
        if updates % 100 == 0:
            _log("pretrain", update=updates, tokens=tokens, loss=round(recent, 4), seconds=round(time.monotonic() - started))
        if time.monotonic() - saved > checkpoint_seconds:
            saved = time.monotonic()
            save(model, tokenizer, output)
            _log("checkpoint", update=updates, tokens=tokens, **measure(model, tokenizer, count=100, seed=recipe.seed + 1))
    return {"tokens": tokens, "updates": updates, "seconds": round(time.monotonic() - started), "final_loss": round(recent, 4)}


def _schedule(updates: int, progress: float, recipe: Recipe) -> float:
    """Warm-up over 60 updates, a plateau, then a straight line down to 3 %."""
    if progress > recipe.decay_from:
        return max(0.03, 1 - 0.97 * (progress - recipe.decay_from) / (1 - recipe.decay_from))
    return min(1.0, (updates + 1) / 60)


def _response_loss(model: LlamaForCausalLM, batch: list[EncodedExample], pad_id: int) -> torch.Tensor:
    """Mean cross-entropy of the response tokens. Padding stands on the right, where causal attention never looks."""
    length = max(len(ids) for ids, _ in batch)
    inputs = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in batch])
    places = torch.tensor([row * length + place for row, (ids, prompt) in enumerate(batch) for place in range(prompt - 1, len(ids) - 1)])
    targets = torch.tensor([token for ids, prompt in batch for token in ids[prompt:]])
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    return cross_entropy(model.lm_head(hidden.flatten(0, 1)[places]), targets)


def _batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, openness: float) -> Iterator[list[EncodedExample]]:
    """The stream of training batches: copying first, then examples sorted by length within a pool."""
    rng = random.Random(f"itool-pretrain:{recipe.seed}")
    exercises = [_copy_exercise(rng, tokenizer) for _ in range(recipe.copy_exercises)]
    copying = _group_by_length(exercises, recipe.batch_tokens // 2)
    rng.shuffle(copying)
    yield from copying
    tokens = 0
    while tokens < recipe.tokens:
        pool = _encode([_phase_draft(rng, tokens / recipe.tokens, openness) for _ in range(recipe.pool)], tokenizer)
        groups = _group_by_length(pool, recipe.batch_tokens)
        rng.shuffle(groups)
        for group in groups:
            tokens += sum(len(ids) for ids, _ in group)
            yield group


def _phase_draft(rng: random.Random, progress: float, openness: float) -> Draft:
    """A draft of the current phase; one in five is already of the last. Open names come last, when all phases are behind."""
    if openness:
        return draft_example(rng, openness=openness)
    current = next((phase for phase in PHASES if progress <= phase[0]), PHASES[-1])
    _, largest, calls = PHASES[-1] if rng.random() < 0.2 else current
    return draft_example(rng, largest=largest, most_calls=calls)


def _copy_exercise(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> EncodedExample:
    """Random tokens to repeat, or pairs of keys and values of which some are asked for."""
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    first = len(SPECIAL_TOKENS)

    def some(count: int) -> list[int]:
        return [rng.randrange(first, len(tokenizer)) for _ in range(count)]

    if rng.random() < 0.5:
        span = some(rng.randint(6, 40))
        return [user, *span, assistant, *span, end], len(span) + 2
    pairs = [(some(1), some(rng.randint(1, 5))) for _ in range(rng.randint(2, 7))]
    colon, equals, comma = tokenizer.convert_tokens_to_ids([":", "=", ","])
    shown = [token for key, value in pairs for token in (*key, colon, *value, comma)]
    asked = rng.sample(pairs, rng.randint(1, len(pairs)))
    answer = [token for key, value in asked for token in (*key, equals, *value, comma)]
    prompt = [*shown, user, *(token for key, _ in asked for token in key), assistant]
    return [*prompt, *answer, end], len(prompt)


def _encode(examples: list[Draft], tokenizer: PreTrainedTokenizerFast) -> list[EncodedExample]:
    prompts = tokenizer([render_prompt(draft.offers, draft.query) for draft in examples], add_special_tokens=False)["input_ids"]
    responses = tokenizer([draft.response + END for draft in examples], add_special_tokens=False)["input_ids"]
    return [(prompt + response, len(prompt)) for prompt, response in zip(prompts, responses, strict=True)]


def _group_by_length(pool: list[EncodedExample], batch_tokens: int) -> list[list[EncodedExample]]:
    """Cut the pool, sorted by length, into batches whose padded size stays below `batch_tokens`."""
    groups: list[list[EncodedExample]] = []
    for sequence in sorted(pool, key=lambda item: len(item[0])):
        if not groups or len(sequence[0]) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(sequence)
    return groups


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> dict[str, float]:
    """Exact match of greedy answers on fresh general examples: all, by number of calls (`text` = no tool fits)."""
    examples = list(islice(drafts("pretrain", seed), count))
    right: dict[str, list[bool]] = {"exact_match": []}
    for draft, text in zip(examples, answer_greedily(model, tokenizer, examples), strict=True):
        correct = exact_match(text, draft.response)
        right["exact_match"].append(correct)
        right.setdefault(f"calls_{len(draft.calls)}" if draft.calls else "text", []).append(correct)
    return {name: round(sum(marks) / len(marks), 3) for name, marks in sorted(right.items())}


@torch.inference_mode()
def answer_greedily(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Draft]) -> list[str]:
    """The model's most likely answer to each draft."""
    prompts = [render_prompt(draft.offers, draft.query) for draft in examples]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), ANSWERED_AT_ONCE):
        chosen = order[start : start + ANSWERED_AT_ONCE]
        inputs = tokenizer([prompts[index] for index in chosen], return_tensors="pt", padding=True, add_special_tokens=False)
        ids = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=160, do_sample=False, use_cache=True
        )
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the folder that transformers and vLLM load, weights in bfloat16."""
    rounded = deepcopy(model).to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False)
    rounded.save_pretrained(output)
    tokenizer.save_pretrained(output)


def data_digest(seed: int) -> str:
    """SHA-256 over the first prompts and responses of the pre-training data: it changes when the generator does, not with a comment."""
    digest = hashlib.sha256()
    for draft in islice(drafts("pretrain", seed), DIGESTED_DRAFTS):
        digest.update(f"{render_prompt(draft.offers, draft.query)}{draft.response}\n".encode())
    return digest.hexdigest()


def _log(event: str, **fields: object) -> None:
    sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")


def main() -> None:
    """Train, save, measure the saved weights, and write down where they come from."""
    parser = argparse.ArgumentParser(description="Pre-train the base model of the built-in task.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--threads", type=int, default=Recipe.threads)
    parser.add_argument("--checkpoint-seconds", type=float, default=300.0)
    parser.add_argument("--first-part", type=Path, help="a base after the first part: do only the second")
    parser.add_argument("--measure", type=int, default=1_000, help="examples for the final metric")
    options = parser.parse_args()
    recipe = Recipe(seed=options.seed, tokens=options.tokens, threads=options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(recipe.threads)
    disable_progress_bar()
    if options.first_part is None:
        tokenizer = train_tokenizer(recipe.seed)
        model = build_model(recipe, tokenizer)
        counts = train(recipe, model, tokenizer, options.output, checkpoint_seconds=options.checkpoint_seconds)
        save(model, tokenizer, options.output)
    first_part = options.first_part or options.output
    tokenizer = AutoTokenizer.from_pretrained(first_part)
    model = AutoModelForCausalLM.from_pretrained(first_part, dtype=torch.float32)  # the second part starts from the saved weights
    if options.first_part is not None:
        counts = json.loads((first_part / "provenance.json").read_text())
        counts = {name: counts[name] for name in ("tokens", "updates", "seconds", "final_loss")}
    counts |= {f"open_{name}": value for name, value in open_names(recipe, model, tokenizer, options.output).items()}
    save(model, tokenizer, options.output)
    shipped = AutoModelForCausalLM.from_pretrained(options.output, dtype=torch.float32)
    metric = measure(shipped, tokenizer, options.measure, recipe.seed + 1)
    provenance = {"recipe": asdict(recipe), **counts, "metric": metric, "data_sha256": data_digest(recipe.seed), "torch": torch.__version__}
    provenance["weights_sha256"] = hashlib.sha256((options.output / "model.safetensors").read_bytes()).hexdigest()
    (options.output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    _log("done", **counts, **metric)


if __name__ == "__main__":
    main()
