"""Finds the log files of a run's attempts after the fact, on this machine or in the store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from itool.artifacts.store import FolderStore, Store, open_store
from itool.cluster.last_words import last_words
from itool.cluster.progress import parse_progress
from itool.cluster.session import local_state
from itool.config import RunConfig

LOG_NAME = re.compile(r"^i(?P<iteration>\d+)-(?P<stage>[a-z]+)(?:-(?P<shard>\d+))?-(?P<attempt>\d+)\.log$")


@dataclass(frozen=True, order=True)
class AttemptLog:
    """One attempt's log: a local file, or an object when `path` is None."""

    iteration: int
    stage: str
    shard: int
    attempt: int
    name: str
    path: Path | None = None

    def read(self, store: Store, run: str, offset: int = 0) -> bytes:
        """Its bytes from `offset` on."""
        if self.path is None:
            return store.read(f"{run}/logs/{self.name}")[offset:]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read()


@dataclass(frozen=True)
class LastWord:
    """What the newest attempt of a stage had to say."""

    attempt: int
    progress: str | None
    message: str


def find_logs(config: RunConfig, store: Store, stage: str, iteration: int | None = None) -> list[AttemptLog]:
    """The newest attempt of every shard of a stage, in the given iteration or the last one that has any."""
    logs = [log for log in _all_logs(config, store) if log.stage == stage and iteration in (None, log.iteration)]
    if not logs:
        return []
    last = max(log.iteration for log in logs)
    newest = {log.shard: log for log in sorted(logs) if log.iteration == last}
    return [newest[shard] for shard in sorted(newest)]


def last_word(config: RunConfig, stage: str, iteration: int) -> LastWord | None:
    """Progress and last message of a stage's newest attempts; None when it never started."""
    store = open_store(config.root, config.store)
    logs = find_logs(config, store, stage, iteration)
    if not logs:
        return None
    outputs = [log.read(store, config.run) for log in logs]
    found = [progress for output in outputs if (progress := _last_progress(output)) is not None]
    text = f"{sum(done for done, _ in found):.0f}/{sum(total for _, total in found):.0f}" if found else None
    return LastWord(max(log.attempt for log in logs), text, last_words(outputs[-1]))


def _last_progress(output: bytes) -> tuple[float, float] | None:
    for line in reversed(output.splitlines()):
        progress = parse_progress(line)
        if progress is not None:
            return progress.done, progress.total
    return None


def _all_logs(config: RunConfig, store: Store) -> list[AttemptLog]:
    if isinstance(store, FolderStore):
        return _parse({path.name: path for path in store.path(f"{config.run}/logs").glob("*.log")})
    stored: dict[str, Path | None] = {key.rpartition("/")[2]: None for key in store.list(f"{config.run}/logs")}
    return _parse(stored | {path.name: path for path in (local_state(config) / "logs").glob("*.log")})


def _parse(files: dict[str, Path] | dict[str, Path | None]) -> list[AttemptLog]:
    found = []
    for name, path in files.items():
        match = LOG_NAME.match(name)
        if match:
            found.append(AttemptLog(int(match["iteration"]), match["stage"], int(match["shard"] or 0), int(match["attempt"]), name, path))
    return found
