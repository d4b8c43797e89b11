"""What every fake stage does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from itool.artifacts.stage import Stage, run_stage
from itool.errors import Interrupted
from itool.names import StageName
from itool.stages import STAGES

TIMES = {"count": 100, "correct": 60, "exact_match": 0.6, "ci95": [0.5, 0.7]}


def run(name: StageName, argv: list[str] | None) -> int:
    directive = _directive(name)
    word, _, argument = directive.partition(" ")
    if word == "exit":
        sys.stderr.write(f"error: told to end with {argument}\n")
        return int(argument)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "crash":
        raise RuntimeError("a bug")
    if word == "forget":
        return 0
    if word == "leave":
        left = subprocess.Popen(["sleep", "60"])
        (Path(os.environ["FAKE_PIDS"]) / str(left.pid)).touch()
        return 0
    if word == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _announce()
        time.sleep(60)
    return run_stage(name, _hang if word == "hang" else _write, argv)


def _write(stage: Stage) -> None:
    stage.working()
    stage.progress(1, 2, "examples", loss=0.5)
    stage.progress(2, 2, "examples", loss=0.4)
    line = {"seed": stage.seed, "shard": stage.shard, "inputs": [stage.manifest(role).digest for role in stage.roles()]}
    for name in STAGES[stage.id.name].writes:
        if name == "report.json":
            stage.write_json(name, _report(stage))
        elif name == "report.html":
            (stage.output / name).write_text("<p>report</p>")
        elif name.endswith(".json"):
            stage.write_json(name, line)
        else:
            stage.write(f"{name}weights.jsonl" if name.endswith("/") else name, [line])
    stage.count(incoming=10, kept=9, dropped={"too_long": 1})
    if stage.id.name == "evaluate":
        stage.metrics({"held_out": 0.6, "validation": 0.5 + stage.id.iteration / 10})


def _hang(stage: Stage) -> None:
    stage.progress(1, 100, "examples")
    _announce()
    deadline = time.monotonic() + 60
    while not stage.should_stop() and time.monotonic() < deadline:
        time.sleep(0.01)
    raise Interrupted("stopped after checkpoint 1")


def _announce() -> None:
    folder = os.environ.get("FAKE_PIDS")
    if folder:
        (Path(folder) / str(os.getpid())).write_text("")


def _directive(name: str) -> str:
    script = os.environ.get("FAKE_SCRIPT")
    if not script:
        return "ok"
    path = Path(script)
    directives = json.loads(path.read_text()).get(name, ["ok"])
    counter = path.with_name(f"{path.name}.{name}")
    count = len(counter.read_bytes()) if counter.exists() else 0
    with counter.open("ab") as file:
        file.write(b".")
    return str(directives[min(count, len(directives) - 1)])


def _report(stage: Stage) -> dict[str, object]:
    config = stage.config
    evaluations = [
        TIMES
        | {"iteration": k, "dataset": dataset, "by_difficulty": {"easy": 0.9, "hard": 0.3}, "no_call": None}
        | {"groups": {}, "errors": {}, "truncated": 0, "pass_at_k": {}}
        for k in range(config.iterations + 1)
        for dataset in ("held_out", "validation")
    ]
    stages = [
        {"name": "prepare", "iteration": 0, "seconds": 1.5, "startup_seconds": 0.5, "tokens": 10, "incoming": 10, "kept": 9}
        | {"dropped": {"too_long": 1}, "peak_memory_bytes": None}
    ]
    return {
        "schema_version": 2, "run": config.run, "method": config.method, "seed": config.seed, "config_digest": "0" * 16, "config": {},
        "stages": stages, "evaluations": evaluations, "iterations": [], "best_iteration": config.iterations, "best_by": "validation",
        "gain": None, "training": [],
    }  # fmt: skip
