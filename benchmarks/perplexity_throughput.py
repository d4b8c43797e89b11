"""Perplexity scoring: tokens/s against a batch-1 loop and against a padding-free forward limit. Same model, one run.

    python -m benchmarks.perplexity_throughput [--sequences 400] [--hidden 128] [--layers 4] [--threads 1] [--model DIR]
        [--prompt-tokens 200] [--dtype float32]

The limit is a plain forward pass over rows that are all of one length (the sample's mean) in batches of the same number of tokens, with
logits at as many positions as our responses have and no other work: no padding, no sorting, no bookkeeping. The loop is what one writes
first: one sequence at a time through the whole model. Seconds are CPU seconds of the process, with a GPU elapsed ones, the best of
`--repeats`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_throughput import DEVICE, Draws, build_base, timed
from itool.train.model import load_model
from itool.train.perplexity import perplexities
from itool.train.sequences import TokenSequence


def loop(model: Any, sequences: Sequence[TokenSequence]) -> list[float]:
    """Perplexities by a loop of one sequence at a time."""
    values = []
    for sequence in sequences:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]], device=DEVICE)
        labels = ids.clone()
        labels[:, : len(sequence.prompt_ids)] = -100
        with torch.inference_mode():
            values.append(math.exp(model(input_ids=ids, labels=labels).loss.item()))
    return values


def limit(model: Any, sequences: Sequence[TokenSequence], batch_tokens: int) -> int:
    """Forward rows of one length; returns how many tokens that were."""
    length = round(sum(map(len, sequences)) / len(sequences))
    scored = round(sum(len(sequence.response_ids) for sequence in sequences) / len(sequences))
    rows = torch.randint(3, 2000, (max(1, batch_tokens // length), length), device=DEVICE)
    batches = max(1, len(sequences) // len(rows))
    with torch.inference_mode():
        for _ in range(batches):
            model(input_ids=rows, logits_to_keep=scored)
    return batches * rows.numel()


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    fastest, result = math.inf, None
    for _ in range(repeats):
        seconds, result = timed(run)
        fastest = min(fastest, seconds)
    return fastest, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=200, help="median length of a prompt")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    draws = Draws()
    sequences = [draws.sequence(options.prompt_tokens) for _ in range(options.sequences)]
    tokens = sum(map(len, sequences))
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            build_base(Path(folder), options.hidden, options.layers)
        model = load_model(options.model or Path(folder), dtype=options.dtype).to(DEVICE).eval()
        ours_seconds, ours = best(lambda: perplexities(model, sequences, batch_tokens=options.batch_tokens), options.repeats)
        loop_seconds, looped = best(lambda: loop(model, sequences), options.repeats)
        limit_seconds, limit_tokens = best(lambda: limit(model, sequences, options.batch_tokens), options.repeats)
    worst = max(abs(a - b) / b for a, b in zip(ours, looped, strict=True))
    rates = {"iTool": tokens / ours_seconds, "batch-1 loop": tokens / loop_seconds, "padding-free limit": limit_tokens / limit_seconds}
    for name, rate in rates.items():
        print(f"{name:20} {rate:9,.0f} tokens/s   iTool is {rates['iTool'] / rate:.2f}x")
    print(f"largest relative difference from the loop: {worst:.1e}")


if __name__ == "__main__":
    main()
