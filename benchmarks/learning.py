"""Does the method learn, and does it beat its controls? Every arm on every seed, at equal updates, and one table with mean and spread.

    python -m benchmarks.learning --seeds 17 18 19 --methods mcts_dpo sft_continued best_of_n rejection_sampling

The arms of a seed share data and warm-up (`reuse_from`). Each arm trains `dpo.updates` updates with equally many sequences; the samples per
example of best_of_n and rejection_sampling are those that the search of the same seed (the first `mcts_dpo` arm) drew on average; the
tokens of complete samples then differ from the search's by a few per cent. Where only a checker knows the buffer's answers:

    python -m benchmarks.learning --root runs/checker --set data.buffer_labels=checker --set select.by=pass_rate --methods mcts_dpo ...

Runs that exist are not repeated: the table can be printed again at no cost. Extra `--set` values apply to every arm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pair_rules import iterations

SAMPLING_CONTROLS = ("best_of_n", "rejection_sampling")


@dataclass(frozen=True)
class Arm:
    """One row of the table: a method, possibly with settings of its own (`simpo:mcts_dpo:dpo.loss=simpo,dpo.length_normalised=false`)."""

    name: str
    method: str
    settings: tuple[str, ...] = ()


def parse_arm(text: str) -> Arm:
    """`mcts_dpo`, or `name:method:key=value,key=value`."""
    name, _, rest = text.partition(":")
    method, _, settings = rest.partition(":")
    return Arm(name, method or name, tuple(settings.split(",")) if settings else ())


def run_seed(arms: Sequence[Arm], seed: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Reports of all arms of a seed, by arm; the first arm's run makes the data and the warm-up."""
    reports: dict[str, dict[str, Any]] = {}
    first = run_name(arms[0], seed)
    for arm in arms:
        alone = "runtime.overlap_evaluation=false"  # `threads` and `parallel` say how many cores are used
        settings = [*options.set, *arm.settings, f"seed={seed}", f"runtime.threads={options.threads}", alone]
        if arm is not arms[0]:
            settings.append(f"reuse_from={first}")
        searched = next((before for before in arms if before.method == "mcts_dpo" and before.name in reports), None)
        if arm.method in SAMPLING_CONTROLS and searched:
            settings.append(f"search.best_of={samples_per_example(options.root, run_name(searched, seed))}")
        reports[arm.name] = run(arm, seed, settings, options)
    return reports


def run_name(arm: Arm, seed: int) -> str:
    """Name of the run of an arm and a seed."""
    return f"{arm.name.replace('_', '-')}-{seed}"


def run(arm: Arm, seed: int, settings: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run or complete one run and return its report."""
    where = ["--root", str(options.root), "--run", run_name(arm, seed)]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-m", "itool.cli.main", "iterate", "--n", str(options.n), "--config", str(options.config), *where]
    with (options.root / f"{run_name(arm, seed)}.log").open("w") as log:
        subprocess.run([*command, "--method", arm.method, *flags], check=True, stdout=log, stderr=log)
    shown = [sys.executable, "-m", "itool.cli.main", "report", run_name(arm, seed), "--root", str(options.root), "--output", "json"]
    report: dict[str, Any] = json.loads(subprocess.run(shown, check=True, capture_output=True, text=True).stdout)
    return report


def samples_per_example(root: Path, run: str) -> int:
    """Complete samples that the search drew per example, on average over all trees of a run."""
    return max(1, round(statistics.mean(tree.samples for _, trees in iterations(root / run) for tree in trees)))


def accuracy(report: dict[str, Any], iteration: int | str) -> dict[str, float]:
    """Figures of the held-out set in % after an iteration (`best`: the one that validation keeps), flat."""
    number = report["best_iteration"] if iteration == "best" else iteration
    found = next(e for e in report["evaluations"] if (e["dataset"], e["iteration"]) == ("held_out", number))
    parts = {"all": found["exact_match"], **found["by_difficulty"], "no call": found["no_call"]}
    parts |= {f"pass@{k}": value for k, value in (found.get("pass_at_k") or {}).items()}
    return {name: 100 * value for name, value in parts.items() if value is not None}


def show(reports: dict[int, dict[str, dict[str, Any]]], arms: Sequence[Arm], n: int) -> None:
    """The table: warm-up, each arm after each iteration and at the kept one, mean and standard deviation over seeds, gain over warm-up."""
    seeds = sorted(reports)
    count = next(e["count"] for e in reports[seeds[0]][arms[0].name]["evaluations"] if e["dataset"] == "held_out")
    print(f"seeds {', '.join(map(str, seeds))}; {count} held-out examples each; exact match in %, mean (sd); gain paired by seed")
    before = [accuracy(reports[seed][arms[0].name], 0) for seed in seeds]
    names = list(before[0])
    print("| arm | iteration | gain | " + " | ".join(names) + " | sampled tokens | updates |\n|" + "---|" * (len(names) + 5))
    print(row("warm-up", "0", before, before, names, "", ""))
    for arm in arms:
        made = [reports[seed][arm.name] for seed in seeds]
        tokens = round(statistics.mean(sum(i["sampled_tokens"] or 0 for i in report["iterations"]) for report in made))
        updates = round(statistics.mean(sum(i["updates"] or 0 for i in report["iterations"]) for report in made))
        for iteration in [*range(1, n + 1), "best"]:
            print(
                row(arm.name, str(iteration), [accuracy(report, iteration) for report in made], before, names, f"{tokens:,}", str(updates))
            )


def row(
    arm: str, iteration: str, after: Sequence[dict[str, float]], before: Sequence[dict[str, float]], names: Sequence[str], *more: str
) -> str:
    """One line of the Markdown table."""
    gains = [a["all"] - b["all"] for a, b in zip(after, before, strict=True)]
    cells = [spread([figures[name] for figures in after]) if all(name in f for f in after) else "" for name in names]
    return "| " + " | ".join([arm, iteration, spread(gains, "+"), *cells, *more]) + " |"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation."""
    deviation = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--root", type=Path, default=Path("runs/learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--methods", nargs="+", default=["mcts_dpo", "sft_continued", "best_of_n", "rejection_sampling"])
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--parallel", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per run (0: all)")
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    arms = [parse_arm(text) for text in options.methods]
    with ThreadPoolExecutor(options.parallel) as pool:
        results = pool.map(lambda seed: run_seed(arms, seed, options), options.seeds)
        reports = dict(zip(options.seeds, results, strict=True))
    show(reports, arms, options.n)


if __name__ == "__main__":
    main()
