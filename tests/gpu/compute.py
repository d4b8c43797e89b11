"""What a stage computes, on the device that this process sees: `python -m tests.gpu.compute ADAPTER|- OUT` writes OUT/results.json.

In a process of its own, because torch and accelerate choose a device once.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

from itool.config import DpoConfig, ModelConfig, PolicyConfig, WarmupConfig
from itool.demo import base_model_path
from itool.policy.embedded import EmbeddedPolicy
from itool.train.model import load_policy
from itool.train.perplexity import perplexities
from itool.train.preference import train_preferences
from itool.train.sequences import TokenSequence
from itool.train.sft import train_sft
from tests.train.conftest import pair

MODEL = ModelConfig(context_tokens=512, lora_rank=8)


def compute(adapter: Path | None, out: Path) -> dict[str, Any]:
    """Train a warm-up and preferences under `out`; then ask `adapter` (None: the one just trained) what all devices answer alike."""
    base, draw = base_model_path(), random.Random(5)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(10, 1000) for _ in range(draw.randint(low, high))]

    sequences = [TokenSequence(ids(20, 200), ids(4, 20), f"e{number}") for number in range(24)]
    pairs = [pair(ids(20, 200), ids(0, 5), [11, *ids(1, 8)], [12, *ids(1, 8)]) for _ in range(12)]
    warmup = WarmupConfig(curriculum="mixed", batch_examples=8, epochs=2, learning_rate=1e-3)
    preference = DpoConfig(updates=5, batch_pairs=4, learning_rate=1e-3, replay_fraction=0.25)
    common: Any = {"model": MODEL, "seed": 1}
    sft = train_sft(base, {"all": sequences}, settings=warmup, output=out / "adapter", **common)
    trained = {"adapter_in": out / "adapter", "settings": preference, "output": out / "preferred"}
    dpo = train_preferences(base, pairs, sequences, **trained, **common)
    adapter = adapter or out / "adapter"
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "sft": [entry["loss"] for entry in sft.metrics],
        "dpo": [entry["loss"] for entry in dpo.metrics],
        "perplexities": perplexities(load_policy(base, adapter), sequences, batch_tokens=1024),
        **asyncio.run(ask(base, adapter, sequences)),
    }


async def ask(base: Path, adapter: Path, sequences: list[TokenSequence]) -> dict[str, Any]:
    """Log-probabilities and samples of the embedded policy, many requests at once."""
    async with EmbeddedPolicy(base, adapter, model=MODEL, policy=PolicyConfig(batch_sequences=64)) as policy:
        logprobs = await asyncio.gather(*(policy.logprobs(row.prompt_ids, row.response_ids) for row in sequences))
        drawn = (policy.sample(row.prompt_ids, count=4, max_tokens=24, temperature=1.0, seed=7) for row in sequences)
        samples = await asyncio.gather(*drawn)
    return {"logprobs": logprobs, "samples": [[sample.token_ids for sample in group] for group in samples]}


if __name__ == "__main__":
    given, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(compute(None if given == "-" else Path(given), folder)))
