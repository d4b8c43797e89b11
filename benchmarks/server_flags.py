"""Sampled tokens per second of a local vLLM server as itool starts it, against the same server with other flags, one after the other.

    python -m benchmarks.server_flags --run runs/demo --flags "--block-size 128" [--prompts 60] [--count 8] [--tokens 96]

Prompts are the first buffer examples of a finished run of the built-in task, the adapter is that of its warm-up. All are in flight at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import tempfile
import time
from pathlib import Path

import yaml

from itool.artifacts.inputs import read_records
from itool.config import PolicyConfig, RunConfig
from itool.data.chat import load_tokenizer, render_prompt
from itool.policy.model_folder import read_model_folder
from itool.policy.server import LocalVllmServer
from itool.policy.vllm import VllmPolicy
from itool.records import Example


def main() -> None:
    options = _read_options()
    ours = asyncio.run(_rate(options, []))
    other = asyncio.run(_rate(options, shlex.split(options.flags)))
    print(f"{options.prompts} prompts x {options.count} samples of at most {options.tokens} tokens, {os.cpu_count()} cores")
    print(f"itool's flags    {ours:8.0f} sampled tokens/s")
    print(f"{options.flags:<16} {other:8.0f} sampled tokens/s")
    print(f"ratio            {ours / other:8.2f}")


async def _rate(options: argparse.Namespace, flags: list[str]) -> float:
    config = RunConfig.model_validate(yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf-8")))
    prepared, adapter = _artifact(options.run, "prepare"), _artifact(options.run, "warmup") / "adapter"
    tokenizer = load_tokenizer(prepared / "model")
    examples = read_records(prepared / "buffer.jsonl", Example)[: options.prompts]
    prompts = [render_prompt(tokenizer, example) for example in examples]
    folder = read_model_folder(prepared / "model", context_tokens=config.model.context_tokens)
    policy_config = PolicyConfig(backend="vllm")
    server = LocalVllmServer(folder, Path(tempfile.mkdtemp()) / "server.log", model=config.model, policy=policy_config)
    server.arguments += flags
    async with server, VllmPolicy(server.url, folder, adapter, policy=policy_config, failure=server.failure) as policy:
        started = time.perf_counter()
        answers = await asyncio.gather(
            *(
                policy.sample(prompt, count=options.count, max_tokens=options.tokens, temperature=1.0, seed=seed)
                for seed, prompt in enumerate(prompts)
            )
        )
        return sum(len(sample.token_ids) for samples in answers for sample in samples) / (time.perf_counter() - started)


def _artifact(run: Path, stage: str) -> Path:
    """The files of a finished stage before the first iteration."""
    (manifest,) = run.glob(f"i0/{stage}/*/manifest.json")
    (content,) = (path for path in manifest.parent.iterdir() if path.is_dir())
    return content


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--flags", required=True)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    return parser.parse_args()


if __name__ == "__main__":
    main()
