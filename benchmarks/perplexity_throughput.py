"""Perplexity scoring: tokens/s against a batch-1 loop and against a padding-free forward limit. Same model, one run.

    python -m benchmarks.perplexity_throughput [--sequences 400] [--hidden 128] [--layers 4] [--threads N] [--model DIR]
        [--prompt-tokens 200] [--dtype float32]

The limit is a plain forward pass over rows that are all of one length (the sample's mean) in batches of the same number of tokens, with
logits at as many positions as our responses have and no other work: no padding, no sorting, no bookkeeping. The loop is what one writes
first: one sequence at a time through the whole model. Threads: all cores unless said. Seconds are elapsed ones, the best of `--repeats`,
in which the three take turns: on a machine that does something else, use one thread and believe the ratios alone.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_throughput import DEVICE, Draws, build_base
from itool.train.model import load_model
from itool.train.perplexity import perplexities
from itool.train.sequences import TokenSequence

OURS, LOOP, LIMIT = "iTool", "batch-1 loop", "padding-free limit"


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


def best_of(repeats: int, runs: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Each run's fastest seconds, and what it returned."""
    seconds, results = dict.fromkeys(runs, math.inf), {}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            results[name] = run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
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
        seconds, results = best_of(
            options.repeats,
            {
                OURS: lambda: perplexities(model, sequences, batch_tokens=options.batch_tokens),
                LOOP: lambda: loop(model, sequences),
                LIMIT: lambda: limit(model, sequences, options.batch_tokens),
            },
        )
    worst = max(abs(a - b) / b for a, b in zip(results[OURS], results[LOOP], strict=True))
    rates = {name: (results[name] if name == LIMIT else tokens) / seconds[name] for name in seconds}
    for name, rate in rates.items():
        print(f"{name:20} {rate:9,.0f} tokens/s   iTool is {rates[OURS] / rate:.2f}x")
    print(f"largest relative difference from the loop: {worst:.1e}")


if __name__ == "__main__":
    main()
