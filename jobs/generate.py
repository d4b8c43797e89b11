"""Generate: search better and worse steps on the hard examples. Reads buffer, adapter and scores, writes trees and pairs. Eq. (5)-(9)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from itool.artifacts.inputs import read_records, write_records
from itool.artifacts.stage import Stage, run_stage
from itool.data.chat import load_tokenizer
from itool.records import Example, PreferencePair, Score, SearchTree
from itool.search.best_of_n import accept_samples
from itool.search.generate import pairs_of, search_examples
from jobs.checkpoints import saving
from jobs.policy import model_folder, open_stage_policy

TREES, DROPPED = "trees.jsonl", "dropped.json"


def generate(stage: Stage) -> None:
    """Search this shard's part of the selected examples, with a checkpoint after finished blocks of trees."""
    hard = {score.example_id for score in stage.read(Score, "scores", "scores.jsonl") if score.selected}
    selected = [example for example in stage.read(Example, "data", "buffer.jsonl") if example.id in hard]
    examples = selected[stage.shard :: stage.shards]
    trees, dropped = asyncio.run(_search(stage, examples))
    pairs: list[PreferencePair] = []
    rejected: Counter[str] = Counter()
    for tree in trees:
        found, reasons = pairs_of(tree, stage.config)
        pairs += found
        rejected += reasons
    stage.write(TREES, trees)
    stage.write("pairs.jsonl", pairs)
    complete = trees if stage.config.method == "rejection_sampling" else []
    stage.write("samples.jsonl", (sample for tree in complete for sample in accept_samples(tree)))
    stage.count(incoming=len(examples), kept=len(trees), dropped=Counter(dropped.values()))
    stage.metrics({"pairs": len(pairs), "pairs_dropped": rejected, "stopped": Counter(tree.stopped for tree in trees)})
    stage.tokens(sum(tree.sampled_tokens for tree in trees))


async def _search(stage: Stage, examples: Sequence[Example]) -> tuple[list[SearchTree], dict[str, str]]:
    """The trees in the order of the examples, and the reason of each example that has none; continues where a checkpoint stands."""
    config, tokenizer = stage.config, load_tokenizer(model_folder(stage))
    trees, dropped = _resume(stage.latest_checkpoint())
    async with open_stage_policy(stage) as policy:
        stage.working()
        done: Collection[str] = frozenset(trees.keys() | dropped.keys())
        blocks = search_examples(
            policy, tokenizer, examples, config, iteration=stage.id.iteration, done=done, should_stop=stage.should_stop
        )

        def count() -> int:
            return len(trees) + len(dropped)

        with saving(stage, lambda folder: _write(folder, trees, dropped), count) as reached:
            async for block in blocks:
                trees |= {tree.example_id: tree for tree in block.trees}
                dropped |= block.dropped
                stage.progress(count(), len(examples), "trees")
                if count() < len(examples):
                    reached()
    return [trees[example.id] for example in examples if example.id in trees], dropped


def _write(folder: Path, trees: dict[str, SearchTree], dropped: dict[str, str]) -> None:
    write_records(folder / TREES, trees.values())
    (folder / DROPPED).write_text(json.dumps(dropped), encoding="utf-8")


def _resume(folder: Path | None) -> tuple[dict[str, SearchTree], dict[str, str]]:
    if folder is None:
        return {}, {}
    trees = {tree.example_id: tree for tree in read_records(folder / TREES, SearchTree)}
    return trees, json.loads((folder / DROPPED).read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    """Entry point of the stage's process; returns its exit code."""
    return run_stage("generate", generate, argv)


if __name__ == "__main__":
    sys.exit(main())
