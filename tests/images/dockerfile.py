"""The Dockerfile as stages of instructions, and what an image built from a target says of itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
STAGE_TARGETS = ("warmup", "score", "generate", "dpo", "evaluate")
TARGETS = ("controller", *STAGE_TARGETS, "vllm-cpu")


@dataclass
class BuildStage:
    """`FROM parent AS name` and what follows."""

    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def instructions(text: str) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(keyword.upper(), rest.strip()) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def parse(text: str) -> tuple[dict[str, str], dict[str, BuildStage]]:
    """The arguments before the first FROM with their defaults, and the stages by name."""
    arguments: dict[str, str] = {}
    stages: dict[str, BuildStage] = {}
    current: BuildStage | None = None
    for keyword, rest in instructions(text):
        if keyword == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = stages[name] = BuildStage(parent)
        elif current is None:
            name, _, default = rest.partition("=")
            arguments[name] = default
        else:
            current.instructions.append((keyword, rest))
    return arguments, stages


ARGUMENTS, STAGES = parse((REPOSITORY / "Dockerfile").read_text())


def lineage(name: str) -> list[str]:
    """The stage and those it is built on, itself first."""
    return [name, *lineage(STAGES[name].parent)] if name in STAGES else []


def history(name: str) -> list[tuple[str, str]]:
    """Every instruction that makes an image, from its base on."""
    return [instruction for stage in reversed(lineage(name)) for instruction in STAGES[stage].instructions]


def values(name: str, keyword: str) -> list[str]:
    """The arguments of every `keyword` of an image, oldest first."""
    return [rest for found, rest in history(name) if found == keyword]


def labels(name: str) -> dict[str, str]:
    """The image's labels, as written."""
    return {key: value for rest in values(name, "LABEL") for key, value in re.findall(r'(\S+)="([^"]*)"', rest)}


def entry_point(name: str) -> list[str]:
    """The image's ENTRYPOINT; ValueError when it is not in exec form, so that a shell would be process 1."""
    found: list[str] = json.loads(values(name, "ENTRYPOINT")[-1])
    return found


def pins(name: str) -> dict[str, str]:
    """Package and version of each line of a constraint file; names as pip compares them."""
    lines = (REPOSITORY / "configs" / "constraints" / f"{name}.txt").read_text().splitlines()
    found = [re.split("={2,3}", line) for line in lines if line and not line.startswith("#")]
    return {normalise(package): version for package, version in found}


def normalise(package: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()
