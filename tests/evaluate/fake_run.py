"""A synthetic but realistic run as records: three iterations on a small task whose accuracy rises, with trees and their pairs."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from typing import Any

from itool.artifacts.manifest import Counts, Manifest
from itool.config import RunConfig, parse_config
from itool.evaluate.report_inputs import ReportInputs
from itool.names import StageName
from itool.records import (
    DIFFICULTIES,
    Example,
    ExamplePerplexity,
    Message,
    Node,
    PassCount,
    Prediction,
    PreferencePair,
    Score,
    SearchTree,
    Tool,
    ToolCall,
)
from itool.search import mcts

CITIES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Turin")
DAYS = ("monday", "friday", "2026-11-23", "next week")
STOPPED = (mcts.SOLVED, mcts.NO_DEFICIENCY, mcts.SIMULATION_LIMIT, mcts.HOPELESS)
HELD_OUT, BUFFER, VALIDATION = 240, 60, 90
ERRORS = ("wrong_argument", "wrong_argument", "wrong_argument", "wrong_tool", "missing_call", "text_instead_of_call", "unparseable")


def fake_config(**changes: Any) -> RunConfig:
    """The configuration of the synthetic run."""
    return parse_config({"run": "demo", "seed": 17, "iterations": 3, "search": {"confidence_weight": 0.5}} | changes)


def fake_inputs(seed: int = 17, method: str = "mcts_dpo", run: str = "demo", gain: float = 0.03) -> ReportInputs:
    """All records of a run. `gain`: how much accuracy each iteration adds."""
    config = fake_config(run=run, seed=seed, method=method)
    rng = random.Random(f"{seed}/{method}")
    examples = {example.id: example for example in (fake_example(i) for i in range(BUFFER))}
    trees, pairs = {}, {}
    for k in (1, 2, 3):
        searched = [fake_tree(rng, example) for example in list(examples.values())[: 52 - 4 * k]]
        trees[k] = [tree for tree, _ in searched]
        pairs[k] = [pair for _, found in searched for pair in found]
    return ReportInputs(
        config=config,
        stages=fake_stages(config, trees, pairs),
        predictions={(k, d): fake_predictions(seed, method, k, d, gain) for k in range(4) for d in ("held_out", "validation")},
        pass_counts={(k, "held_out"): fake_pass_counts(k) for k in range(4)},
        perplexities={k: fake_perplexities(k) for k in range(4)},
        scores={k: fake_scores(rng, k) for k in (1, 2, 3)},
        trees=trees,
        pairs=pairs,
        training={(0, "warmup"): sft_rows(rng)} | {(k, "dpo"): dpo_rows(rng) for k in (1, 2, 3)},
        examples=examples,
    )


def fake_example(index: int) -> Example:
    """One buffer example; every ninth needs no tool, and one tries to break out of the page."""
    city, day = CITIES[index % len(CITIES)], DAYS[index % len(DAYS)]
    tool = Tool(
        name="weather_forecast",
        description="Forecast for a city and a day",
        parameters={"type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}, "required": ["city"]},
    )
    other = Tool(name="weather_history", description="Past weather </script><script>window.broken = 1</script>", parameters={})
    calls = [] if index % 9 == 8 else [ToolCall(name="weather_forecast", arguments={"city": city, "day": day})]
    response = f'[weather_forecast(city="{city}", day="{day}")]' if calls else "None of the tools can do that."
    query = f"What will the weather be in {city} on {day}?" if calls else f"Please water my plants in {city}."
    if index == 0:
        query += " <img src=x onerror='window.broken = 1'>"
    return Example(
        id=f"demo-{index:04d}",
        messages=[Message(role="user", content=query)],
        tools=[tool, other],
        calls=calls,
        response=response,
        difficulty=DIFFICULTIES[index % 3],
        source="demo",
    )


def fake_tree(rng: random.Random, example: Example) -> tuple[SearchTree, list[PreferencePair]]:
    """A search over the arguments of one call: root -> name -> city -> day, and the pairs that its siblings give."""
    stopped = rng.choice(STOPPED)
    nodes = [Node(parent=None, step_ids=[], text="", prior=1.0, visits=13, value=0.55, action_value=0.55, outcome=0.0, confidence=0.5)]
    pairs: list[PreferencePair] = []
    if not example.calls:
        nodes += [_leaf(0, [5, 6], example.response or "", 0.7, 9, True), _leaf(0, [7], '[weather_history(city="Oslo")]', 0.3, 3, False)]
        pairs = [_pair(example, [], nodes[1], nodes[2], [])]
    else:
        city, day = (str(v) for v in example.calls[0].arguments.values())
        nodes += [
            _step(0, [1, 2], "[weather_forecast(", 0.9, 12, 0.58, outcome=0.2, confidence=0.61),
            _step(1, [3], f'city="{city}", ', 0.6, 7, 0.86, outcome=0.6, confidence=0.8),
            _step(1, [4], f'city="{rng.choice(CITIES)} City", ', 0.3, 4, 0.12, outcome=0.1, confidence=0.2),
            _leaf(2, [8], f'day="{day}")]', 0.5, 4, True, injected=rng.random() < 0.3),
            _leaf(2, [9], 'day="today")]', 0.4, 3, False),
            _leaf(3, [8], f'day="{day}")]', 0.8, 3, False),
        ]
        if stopped in (mcts.SOLVED, mcts.SIMULATION_LIMIT):
            pairs = [_pair(example, [1, 2], nodes[2], nodes[3], [1]), _pair(example, [1, 2, 3], nodes[4], nodes[5], [1, 2])]
    tree = SearchTree(
        example_id=example.id,
        prompt_ids=[11, 12],
        nodes=nodes,
        stopped=stopped,
        simulations=rng.randint(4, 8),
        sampled_tokens=rng.randint(200, 400),
        samples=12,
        correct_samples=rng.randint(0, 12),
    )
    return tree, pairs


def _step(parent, ids, text, prior, visits, value, *, outcome, confidence):  # noqa: PLR0917 - a table row
    return Node(
        parent=parent,
        step_ids=ids,
        text=text,
        prior=prior,
        visits=visits,
        value=value,
        action_value=value,
        outcome=outcome,
        confidence=confidence,
    )


def _leaf(parent, ids, text, prior, visits, correct, *, injected=False):  # noqa: PLR0917 - a table row
    return Node(
        parent=parent,
        step_ids=ids,
        text=text,
        prior=prior,
        visits=visits,
        value=0.0,
        action_value=1.0 if correct else 0.0,
        outcome=1.0 if correct else 0.35,
        confidence=0.9 if correct else None,
        terminal=True,
        correct=correct,
        injected=injected,
    )


def _pair(example: Example, prefix: list[int], chosen: Node, rejected: Node, path: list[int]) -> PreferencePair:
    return PreferencePair(
        example_id=example.id,
        prompt_ids=[11, 12],
        prefix_ids=prefix,
        chosen_ids=chosen.step_ids,
        rejected_ids=rejected.step_ids,
        chosen_value=chosen.action_value,
        rejected_value=rejected.action_value,
        chosen_visits=chosen.visits,
        rejected_visits=rejected.visits,
        chosen_correct=1,
        rejected_wrong=1,
        injected=chosen.injected,
        node_path=path,
    )


def fake_predictions(seed: int, method: str, k: int, dataset: str, gain: float) -> list[Prediction]:
    """Answers whose chance of being right falls with difficulty and rises with the iteration; the same examples are hard for every arm."""
    rows = []
    for i in range(HELD_OUT if dataset == "held_out" else VALIDATION):
        difficulty = DIFFICULTIES[i % 3]
        chance = {"easy": 0.8, "medium": 0.55, "hard": 0.3}[difficulty] + gain * k
        luck = random.Random(f"{seed}/{dataset}/{i}").random() * 0.8 + random.Random(f"{seed}/{method}/{dataset}/{i}/{k}").random() * 0.2
        correct = luck < chance
        error = None if correct else random.Random(f"{seed}/{i}/{k}").choice(ERRORS)
        rows.append(
            Prediction(
                example_id=f"{dataset}-{i}",
                text="[f()]",
                calls=[],
                correct=correct,
                error=error,
                difficulty=difficulty,
                stratum="text" if i % 8 == 7 else "calls",
                response_tokens=20,
                truncated=error == "unparseable",
            )
        )
    return rows


def fake_pass_counts(k: int) -> list[PassCount]:
    """60 examples, each solved by 0 to 8 of eight samples."""
    return [PassCount(example_id=f"held_out-{i}", samples=8, correct=(i + k) % 9, tokens=160) for i in range(60)]


def fake_perplexities(k: int) -> list[ExamplePerplexity]:
    """Ground truths that every iteration foresees better; the first is 1.5 after the warm-up."""
    values = (1.0 + 0.5 ** (k + 1) * (1 + i % 7) for i in range(VALIDATION))
    return [ExamplePerplexity(example_id=f"validation-{i}", perplexity=value, response_tokens=20) for i, value in enumerate(values)]


def fake_scores(rng: random.Random, k: int) -> list[Score]:
    """Perplexities that shrink with the iteration; the hardest fifth is selected."""
    values = sorted((math.exp(abs(rng.gauss(0.0, 0.35)) / (0.7 + 0.3 * k)) for _ in range(BUFFER)), reverse=True)
    return [
        Score(example_id=f"demo-{i:04d}", perplexity=value, stratum="calls", selected=i < BUFFER // 5) for i, value in enumerate(values)
    ]


def sft_rows(rng: random.Random) -> list[dict[str, Any]]:
    """A warm-up log of more updates than the report keeps."""
    return [
        {"update": u, "loss": 2.2 * math.exp(-u / 90) + 0.25 + rng.gauss(0, 0.04), "learning_rate": 3e-3 * (1 - u / 450), "tokens": u * 900}
        for u in range(1, 451)
    ]


def dpo_rows(rng: random.Random) -> list[dict[str, Any]]:
    """A preference-training log."""
    return [
        {
            "update": u,
            "loss": 0.69 - 0.006 * u + rng.gauss(0, 0.01),
            "nll/chosen": 0.2 + rng.gauss(0, 0.02),
            "logps/chosen": -2.0 - 0.01 * u + rng.gauss(0, 0.05),
            "logps/rejected": -3.0 - 0.05 * u + rng.gauss(0, 0.05),
            "margins": 0.03 * u + rng.gauss(0, 0.05),
            "accuracies": min(1.0, 0.5 + 0.012 * u + rng.gauss(0, 0.03)),
            "kl_reference": 0.002 * u,
            "learning_rate": 1e-4 * (1 - u / 40),
        }
        for u in range(1, 41)
    ]


def fake_stages(config: RunConfig, trees: dict[int, list[SearchTree]], pairs: dict[int, list[PreferencePair]]) -> tuple[Manifest, ...]:
    """The manifests, without files."""
    unfit = {"prompt_too_long": 9, "no_answer": 6}
    stages = [
        finished("prepare", 0, 4.1, 0.6, Counts(incoming=3120, kept=3105, dropped=unfit)),
        finished("warmup", 0, 82.0, 2.9, Counts(incoming=1500, kept=1500), tokens=402_000, peak_memory_bytes=2_100_000_000),
        finished("evaluate", 0, 14.2, 2.4, Counts(incoming=330, kept=330), tokens=31_000),
    ]
    for k in sorted(trees):
        searched = Counts(incoming=len(trees[k]) + 2, kept=len(trees[k]), dropped={"self_evaluation_too_long": 2})
        sampled = sum(tree.sampled_tokens for tree in trees[k])
        dropped = {"value gap too small": 21, "too few visits": 14}
        stages += [
            finished("score", k, 5.0, 2.1, Counts(incoming=BUFFER, kept=BUFFER // 5), tokens=64_000),
            finished("generate", k, 31.0 + k, 2.3, searched, tokens=sampled, metrics={"pairs_dropped": dropped}),
            finished("dpo", k, 19.0, 2.8, Counts(incoming=len(pairs[k]), kept=len(pairs[k])), tokens=58_000),
            finished("evaluate", k, 14.0, 2.2, Counts(incoming=330, kept=330), tokens=31_000),
        ]
    return tuple(stages)


def finished(stage: StageName, iteration: int, seconds: float, startup_seconds: float, counts: Counts, **more: Any) -> Manifest:
    """The manifest of a finished stage, without files."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Manifest(
        run="demo",
        stage=stage,
        iteration=iteration,
        key="0" * 16,
        files={},
        seconds=seconds,
        startup_seconds=startup_seconds,
        started=now,
        ended=now,
        counts=counts,
        **more,
    )
