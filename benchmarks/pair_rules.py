"""What the rules for pairs decide on finished trees: pairs under other `min_gap`, and pairs whose chosen step is not right more often.

    python -m benchmarks.pair_rules runs/demo runs/smollm2 [--gaps 0.1 0.075 0.05]

One line per iteration; the ratio is against the first gap. Nothing is trained: decisions 0010 and 0012 say what the rules are for.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from itool.artifacts.inputs import read_records
from itool.records import PreferencePair, SearchTree
from itool.search.pairs import extract_pairs


def main() -> None:
    """Print a line for each iteration of each run."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--gaps", nargs="+", type=float, default=[0.1, 0.09, 0.075, 0.05, 0.02])
    parser.add_argument("--min-visits", type=int, default=2)
    options = parser.parse_args()
    for run in options.runs:
        for iteration, trees in iterations(run):
            found = [[pair for tree in trees for pair in pairs_of(tree, gap, options.min_visits)] for gap in options.gaps]
            counts = ", ".join(
                f"{gap:g}: {len(pairs)} ({len(pairs) / max(len(found[0]), 1):.2f}x)" for gap, pairs in zip(options.gaps, found, strict=True)
            )
            unlike = sum(not is_right_more_often(pair) for pair in found[0])
            print(f"{run.name} {iteration}: {len(trees)} trees; pairs by gap {counts}; chosen not right more often: {unlike}")


def iterations(run: Path) -> Iterator[tuple[str, list[SearchTree]]]:
    """The trees of each iteration, all shards. SystemExit where a run holds the searches of several settings."""
    for folder in sorted(run.glob("i*/generate")):
        if len(list(folder.iterdir())) > 1:
            raise SystemExit(f"{folder} holds the searches of several settings: take a run, or a --root, of its own for each")
        files = [path for path in sorted(folder.rglob("trees.jsonl")) if "checkpoints" not in path.parts]
        yield folder.parent.name, [tree for path in files for tree in read_records(path, SearchTree)]


def pairs_of(tree: SearchTree, gap: float, min_visits: int) -> list[PreferencePair]:
    """The tree's pairs under another gap."""
    return extract_pairs(tree, min_gap=gap, min_visits=min_visits)[0]


def is_right_more_often(pair: PreferencePair) -> bool:
    """Whether a larger share of the roll-outs below chosen ended right than of those below rejected."""
    return pair.chosen_correct / pair.chosen_visits > 1 - pair.rejected_wrong / pair.rejected_visits


if __name__ == "__main__":
    main()
