"""SFT and preference training against plain TRL on the same rows in the same updates: tokens/s, the ratio, and both losses.

    python -m benchmarks.training_throughput [--updates 20] [--hidden 128] [--layers 4] [--threads 1] [--dtype float32]

Data: random words at mixed lengths (log-normal, 30 to 500 tokens), so that TRL's own path (text in, tokenised, EOS added) sees the very
ids that we do. "TRL defaults" is TRL as it comes except float32 (so that losses can be compared; with `--dtype bfloat16` its own bf16) and
a batch that makes the same update; "no checkpointing" also switches off gradient checkpointing, which TRL has on. Seconds are CPU seconds
of the process, since others may share the machine; with a GPU elapsed ones.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from itool.config import DpoConfig, ModelConfig, WarmupConfig
from itool.records import PreferencePair
from itool.train.distributed import ALONE
from itool.train.hooks import TrainingHooks
from itool.train.model import load_model, new_adapter
from itool.train.preference import StepDpoTrainer, _as_step, plan_preferences
from itool.train.sequences import TokenSequence
from itool.train.sft import TokenSftTrainer, plan_curriculum
from itool.train.updates import repeatable_kernels, run_updates, training_arguments

VOCABULARY, EOS, ROWS, PAIRS = 2048, 2, 32, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class InOrder:
    """Mixin: TRL reads its rows in the order given, so that its updates hold the same rows as ours."""

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)  # type: ignore[attr-defined]


class OrderedSft(InOrder, SFTTrainer):  # type: ignore[misc]
    """Plain SFTTrainer without shuffling."""


class OrderedDpo(InOrder, DPOTrainer):  # type: ignore[misc]
    """Plain DPOTrainer without shuffling."""


def build_base(folder: Path, hidden: int, layers: int) -> None:
    """A random Llama whose tokenizer maps the word `w7` to token 7."""
    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 32}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, eos_token_id=EOS, pad_token_id=0, **shape)
    ).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{index}": index for index in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)


class Draws:
    """Random token ids at mixed lengths."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def ids(self, low: int, high: int, median: float) -> list[int]:
        length = int(min(max(median * self.rng.lognormvariate(0, 0.6), low), high))
        return [self.rng.randrange(3, VOCABULARY) for _ in range(length)]

    def sequence(self, prompt_tokens: int = 200) -> TokenSequence:
        return TokenSequence(self.ids(prompt_tokens * 3 // 20, prompt_tokens * 47 // 20, prompt_tokens), [*self.ids(4, 30, 15), EOS])

    def pair(self) -> PreferencePair:
        sides = {"chosen_ids": [3, *self.ids(1, 15, 6), EOS], "rejected_ids": [4, *self.ids(1, 15, 6), EOS]}
        evidence = {
            "chosen_value": 1,
            "rejected_value": 0,
            "chosen_visits": 2,
            "rejected_visits": 2,
            "chosen_correct": 1,
            "rejected_wrong": 1,
        }
        return PreferencePair(example_id="", prompt_ids=self.ids(30, 470, 200), prefix_ids=[], **sides, **evidence)


def text(ids: list[int] | Any) -> str:
    """Words that tokenise to these ids; TRL adds the EOS itself."""
    return " ".join(f"w{token}" for token in ids if token != EOS)


def trl_arguments(kind: Any, scratch: str, *, updates: int, rows: int, checkpointing: bool, dtype: str) -> Any:
    return kind(
        scratch,
        max_steps=updates,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=rows // 8,
        gradient_checkpointing=checkpointing,
        bf16=dtype == "bfloat16",
        learning_rate=1e-3,
        use_cpu=DEVICE == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, which other work on the machine does not change; on a GPU the time that passed until it was done."""
    clock = time.process_time if DEVICE == "cpu" else time.perf_counter
    started = clock()
    result = run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - started, result


def measure_sft(base: Path, lora: ModelConfig, updates: int, batch_tokens: int) -> dict[str, tuple[float, float]]:
    """Tokens/s and mean loss by variant."""
    draws = Draws()
    rows = [draws.sequence() for _ in range(updates * ROWS)]
    settings = WarmupConfig(
        epochs=1, batch_examples=ROWS, batch_tokens=batch_tokens, learning_rate=1e-3, weight_decay=0.0, warmup_fraction=0.0
    )
    plan = plan_curriculum([len(rows)], settings, 0)
    ordered = [rows[index] for update in plan for index in update.rows]
    tokens = sum(map(len, rows))
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = {}
    for name, checkpointing in (("TRL defaults", True), ("TRL, no checkpointing", False)):
        with tempfile.TemporaryDirectory() as scratch:
            data = Dataset.from_list([{"prompt": text(row.prompt_ids) + " ", "completion": text(row.response_ids)} for row in ordered])
            arguments = trl_arguments(SFTConfig, scratch, updates=updates, rows=ROWS, checkpointing=checkpointing, dtype=lora.dtype)
            trainer = OrderedSft(
                new_adapter(load_model(base, dtype=lora.dtype), lora, seed=0), arguments, train_dataset=data, processing_class=tokenizer
            )
            seconds, result = timed(trainer.train)
            found[name] = (tokens / seconds, result.training_loss)
    with repeatable_kernels(), tempfile.TemporaryDirectory() as scratch:
        model = new_adapter(load_model(base, dtype=lora.dtype), lora, seed=0)
        arguments = training_arguments(SFTConfig, model, updates=updates, settings=settings, seed=0, scratch=scratch)
        ours = TokenSftTrainer(
            model, arguments, sequences=rows, plan=plan, batch_tokens=settings.batch_tokens, workers=ALONE, processing_class=tokenizer
        )
        seconds, log = timed(lambda: run_updates(ours, settings, TrainingHooks(), output=Path(scratch) / "adapter", identity=""))
        found["iTool"] = (tokens / seconds, statistics.fmean(entry["loss"] for entry in log.metrics))
    return found


def measure_dpo(base: Path, lora: ModelConfig, updates: int, batch_tokens: int) -> dict[str, tuple[float, float]]:
    """Tokens/s (both sides with their prompt, as TRL counts them; our reference pass included) and mean loss by variant."""
    draws = Draws()
    pairs = [draws.pair() for _ in range(updates * PAIRS)]
    settings = DpoConfig(
        updates=updates,
        batch_pairs=PAIRS,
        batch_tokens=batch_tokens,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_fraction=0.0,
        replay_fraction=0.0,
        nll_weight=0.0,
    )
    plan = plan_preferences(len(pairs), 0, settings, 0)
    ordered = [pairs[index] for update in plan for index in update.pairs]
    tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = {}
    for name, checkpointing in (("TRL defaults", True), ("TRL, no checkpointing", False)):
        with tempfile.TemporaryDirectory() as scratch:
            rows = [{"prompt": text(p.prompt_ids) + " ", "chosen": text(p.chosen_ids), "rejected": text(p.rejected_ids)} for p in ordered]
            arguments = trl_arguments(DPOConfig, scratch, updates=updates, rows=PAIRS, checkpointing=checkpointing, dtype=lora.dtype)
            model = new_adapter(load_model(base, dtype=lora.dtype), lora, seed=0)
            trainer = OrderedDpo(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
            seconds, result = timed(trainer.train)
            found[name] = (tokens / seconds, result.training_loss)
    with repeatable_kernels(), tempfile.TemporaryDirectory() as scratch:
        model = new_adapter(load_model(base, dtype=lora.dtype), lora, seed=0)
        ours = StepDpoTrainer(
            model,
            args=training_arguments(DPOConfig, model, updates=updates, settings=settings, seed=0, scratch=scratch),
            pairs=[_as_step(pair, settings) for pair in pairs],
            replay=[],
            plan=plan,
            settings=settings,
            apart=False,
            workers=ALONE,
            processing_class=tokenizer,
        )
        reference_seconds, _ = timed(lambda: ours.freeze_reference(None, lambda: False))
        seconds, log = timed(lambda: run_updates(ours, settings, TrainingHooks(), output=Path(scratch) / "adapter", identity=""))
        found["iTool"] = (tokens / (seconds + reference_seconds), statistics.fmean(entry["loss"] for entry in log.metrics))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=WarmupConfig().batch_tokens, help="of our forward passes")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    lora = ModelConfig(lora_rank=options.rank, lora_alpha=2.0 * options.rank, dtype=options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        build_base(Path(folder), options.hidden, options.layers)
        for kind, measure in (("SFT", measure_sft), ("DPO", measure_dpo)):
            if DEVICE == "cuda":
                measure(Path(folder), lora, 2, options.batch_tokens)  # the first use of every kernel takes long and is not what we ask
            found = measure(Path(folder), lora, options.updates, options.batch_tokens)
            ours = found["iTool"][0]
            for name, (rate, loss) in found.items():
                print(f"{kind:4} {name:22} {rate:9,.0f} tokens/s   mean loss {loss:.5f}   iTool is {ours / rate:.2f}x", flush=True)


if __name__ == "__main__":
    main()
