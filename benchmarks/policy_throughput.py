"""Sampled tokens per second of the embedded policy against transformers' `generate`, same model, same prompts, one run.

    python -m benchmarks.policy_throughput --model FOLDER [--adapter FOLDER] [--prompts 32] [--count 8] [--tokens 48] [--threads 2]

Prompts are random token ids, so answers end only by chance and both sides decode about the same number of steps. The first round of
each side is a warm-up and not counted; each counted round uses new prompts, so that no prompt cache helps.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from itool.config import ModelConfig, PolicyConfig
from itool.policy.embedded import EmbeddedPolicy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    options = _read_options()
    torch.set_num_threads(options.threads)
    rounds = [_prompts(options, seed) for seed in range(options.rounds + 1)]
    with_generate = 0.0 if options.skip_generate else _generate_rate(options, rounds)
    embedded = asyncio.run(_embedded_rate(options, rounds))
    print(f"threads {options.threads}, {options.prompts} prompts x {options.count} samples, prompt about {options.prompt_tokens} tokens")
    print(f"transformers generate  {with_generate:10.0f} sampled tokens/s")
    print(f"embedded policy        {embedded:10.0f} sampled tokens/s")
    if with_generate:
        print(f"ratio                  {embedded / with_generate:10.2f}")


def _prompts(options: argparse.Namespace, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    length = options.prompt_tokens
    return [[draw.randrange(10, 1000) for _ in range(draw.randrange(length * 3 // 4, length * 5 // 4))] for _ in range(options.prompts)]


async def _embedded_rate(options: argparse.Namespace, rounds: list[list[list[int]]]) -> float:
    policy_config = PolicyConfig(batch_sequences=options.prompts * options.count)
    model_config = ModelConfig(context_tokens=2048, dtype=options.dtype)
    async with EmbeddedPolicy(options.model, options.adapter, model=model_config, policy=policy_config) as policy:
        tokens = 0
        for number, prompts in enumerate(rounds):
            if number == 1:
                started = time.perf_counter()
            answers = await asyncio.gather(
                *(
                    policy.sample(ids, count=options.count, max_tokens=options.tokens, temperature=1.0, seed=seed)
                    for seed, ids in enumerate(prompts)
                )
            )
            tokens += sum(len(sample.token_ids) for samples in answers for sample in samples) if number else 0
        return tokens / (time.perf_counter() - started)


@torch.inference_mode()
def _generate_rate(options: argparse.Namespace, rounds: list[list[list[int]]]) -> float:
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(DEVICE).eval()
    stop = model.generation_config.eos_token_id
    stops = torch.tensor(stop if isinstance(stop, list) else [stop], device=DEVICE)
    tokens = 0
    for number, prompts in enumerate(rounds):
        if number == 1:
            started = time.perf_counter()
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=DEVICE)
        output = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=options.tokens,
            num_return_sequences=options.count, pad_token_id=int(stops[0]),
        )[:, longest:]  # fmt: skip
        ended = torch.isin(output, stops).cumsum(1)
        tokens += int(((ended == 0) | ((ended == 1) & torch.isin(output, stops))).sum()) if number else 0
    return tokens / (time.perf_counter() - started)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--skip-generate", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
