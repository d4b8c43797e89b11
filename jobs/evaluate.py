"""Evaluate: how good is an adapter? Reads held-out and validation sets, writes predictions, accuracy with intervals, and pass@k."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.data.sources.load import pick
from itool.evaluate.held_out import mean_pass_at_k, pass_counts, predict, summarise
from itool.policy.protocol import Policy
from itool.records import Example
from jobs.policy import model_folder, open_stage_policy


def evaluate(stage: Stage) -> None:
    """The held-out set is what the report shows; the validation set decides which iteration is kept."""
    asyncio.run(_evaluate(stage))


async def _evaluate(stage: Stage) -> None:
    config, tokenizer = stage.config, load_tokenizer(model_folder(stage))
    sets = {name: stage.read(Example, "data", f"{name}.jsonl") for name in ("held_out", "validation")}
    total = sum(map(len, sets.values()))
    summaries: dict[str, dict[str, Any]] = {}
    done = 0
    async with open_stage_policy(stage) as policy:
        stage.working()
        for name, examples in sets.items():
            before = done

            def show(finished: int, _: int, before: int = before) -> None:
                stage.raise_if_stopped()
                stage.progress(before + finished, total, "examples")

            predictions = await predict(policy, tokenizer, examples, config, on_progress=show)
            done += len(examples)
            stage.write(f"{name}.jsonl", predictions)
            stage.tokens(sum(prediction.response_tokens for prediction in predictions))
            summaries[name] = summarise(predictions)
        summaries["held_out"] |= await _pass_at_k(stage, policy, tokenizer, sets["held_out"])
    stage.write_json("metrics.json", summaries)
    stage.count(incoming=total, kept=total)
    stage.metrics({name: summary["exact_match"] for name, summary in summaries.items()})


async def _pass_at_k(stage: Stage, policy: Policy, tokenizer: Any, examples: list[Example]) -> dict[str, Any]:
    """pass@k and of how many examples: by hash of the id, as a file may be sorted by difficulty, and the same in every iteration."""
    settings = stage.config.evaluate
    chosen = pick(examples, settings.pass_examples)
    if not chosen:
        return {"pass_at_k": {}, "pass_examples": 0}
    seed = stage.config.seed  # the same draws in every iteration: what differs is the policy
    samples = max(settings.pass_k)
    counts = await pass_counts(
        policy, tokenizer, chosen, stage.config, samples=samples, seed=seed, on_progress=lambda *_: stage.raise_if_stopped()
    )
    stage.tokens(sum(count.tokens for count in counts))
    return {"pass_at_k": mean_pass_at_k(counts, settings.pass_k), "pass_examples": len(counts)}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("evaluate", evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
