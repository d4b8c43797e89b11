"""The smallest run that passes through every stage on the shipped base, the command line that starts it, and scripts for single stages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from itool.artifacts.manifest import manifest_key, parse_manifest
from itool.artifacts.resolve import manifest_prefixes
from itool.artifacts.store import FolderStore, Store
from tests.fakes.byte_tokenizer import byte_tokenizer
from tests.fakes.scripted_policy import ScriptedPolicy

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {
    "data.count": 240,
    "data.held_out_count": 30,
    "warmup.epochs": 2,
    "select.by": "perplexity",
    "search.root_samples": 6,
    "search.simulations": 2,
    "search.trees_in_flight": 8,
    "search.shards": 1,
    "dpo.updates": 3,
    "dpo.batch_pairs": 4,
    "runtime.threads": 1,
}


def itoolctl(*arguments: str, cwd: Path, expect: int = 0, timeout_seconds: float = 280) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does and check its exit code."""
    command = [sys.executable, "-m", "itool.cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout_seconds)
    assert done.returncode == expect, f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def small_settings(**more: Any) -> list[str]:
    """`--set` flags of the smallest run; `a__b` stands for `a.b`."""
    settings = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return [flag for key, value in settings.items() for flag in ("--set", f"{key}={yaml.safe_dump(value).splitlines()[0]}")]


def iterate(
    folder: Path, *flags: str, n: int = 1, expect: int = 0, timeout_seconds: float = 280, **more: Any
) -> subprocess.CompletedProcess[str]:
    """`itoolctl iterate` of the smallest run below `folder`."""
    config = str(REPOSITORY / "configs" / "demo.yaml")
    command = ["iterate", "--n", str(n), "--config", config, *small_settings(**more), *flags]
    return itoolctl(*command, cwd=folder, expect=expect, timeout_seconds=timeout_seconds)


def copy_of(folder: Path, target: Path) -> Path:
    """The runs of another folder, to be changed."""
    shutil.copytree(folder / "runs", target / "runs")
    return target


def digests(folder: Path, run: str = "demo") -> dict[str, dict[str, str]]:
    """`digests_in` of a run below a folder."""
    return digests_in(FolderStore(folder / "runs"), run)


def digests_in(store: Store, run: str = "demo") -> dict[str, dict[str, str]]:
    """Files and SHA-256 of every artifact of a run, by stage; the report, which holds times, is left out."""
    found = {}
    for prefix in sorted(manifest_prefixes(store.list(run))):
        manifest = parse_manifest(store.read(manifest_key(prefix)), prefix)
        if manifest.stage != "report":
            found[f"i{manifest.iteration}/{manifest.stage}"] = {name: entry.sha256 for name, entry in manifest.files.items()}
    return found


def answer_with(monkeypatch: pytest.MonkeyPatch, module: ModuleType, policy: Callable[[], ScriptedPolicy]) -> None:
    """Whenever a stage of this module opens its policy it gets one of these, and a tokenizer to match."""

    @asynccontextmanager
    async def policy_of(_stage: Any) -> AsyncIterator[ScriptedPolicy]:
        yield policy()

    monkeypatch.setattr(module, "open_stage_policy", policy_of)
    monkeypatch.setattr(module, "model_folder", lambda _stage: None)
    monkeypatch.setattr(module, "load_tokenizer", lambda _folder: byte_tokenizer())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a finished run of one iteration. Copy it to change it."""
    folder = tmp_path_factory.mktemp("finished")
    iterate(folder)
    return folder
