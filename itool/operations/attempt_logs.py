"""Finds the log files of a run's attempts after the fact, on this machine or in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from itool.artifacts.store import FolderStore, Store
from itool.cluster.last_words import last_words
from itool.cluster.log_names import LOGS_FOLDER, LogName, log_key, logs_prefix, parse_log_name
from itool.cluster.progress import Progress, last_progress
from itool.cluster.session import local_state
from itool.config import RunConfig

AttemptKey = tuple[int, int, int]
"""Iteration, shard, attempt of a stage."""


@dataclass(frozen=True)
class AttemptLog:
    """One attempt's log: a local file, or an object when `path` is None."""

    name: LogName
    path: Path | None = None

    @property
    def key(self) -> AttemptKey:
        """Iteration, shard, attempt."""
        return self.name.iteration, self.name.shard or 0, self.name.attempt

    def read(self, store: Store, run: str, offset: int = 0) -> bytes:
        """Its bytes from `offset` on."""
        if self.path is None:
            return store.read(log_key(run, self.name))[offset:]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read()


@dataclass(frozen=True)
class LastWord:
    """What the newest attempt of a stage had to say."""

    attempt: int
    progress: str | None
    message: str


@dataclass(frozen=True)
class Wanted:
    """Which logs of a stage are asked for; None leaves it open: the last iteration that has any, all shards, each one's newest attempt."""

    stage: str
    iteration: int | None = None
    shard: int | None = None
    attempt: int | None = None

    def choose(self, keys: Iterable[AttemptKey]) -> list[AttemptKey]:
        """Of the attempts that there are, those that are asked for, by shard."""
        pattern = (self.iteration, self.shard, self.attempt)
        fitting = sorted({key for key in keys if all(wish in (None, value) for wish, value in zip(pattern, key, strict=True))})
        last = fitting[-1][0] if fitting else 0
        newest = {shard: (iteration, shard, attempt) for iteration, shard, attempt in fitting if iteration == last}
        return [newest[shard] for shard in sorted(newest)]


def find_logs(config: RunConfig, store: Store, wanted: Wanted) -> list[AttemptLog]:
    """The log files that are asked for."""
    logs = {log.key: log for log in stored_logs(config, store) if log.name.stage == wanted.stage}
    return [logs[key] for key in wanted.choose(logs)]


def last_word(config: RunConfig, store: Store, stage: str, iteration: int) -> LastWord | None:
    """Progress and last message of a stage's newest attempts; None when it never started."""
    logs = find_logs(config, store, Wanted(stage, iteration))
    if not logs:
        return None
    outputs = [log.read(store, config.run) for log in logs]
    found = [progress for output in outputs if (progress := last_progress(output))]
    text = Progress(sum(each.done for each in found), sum(each.total for each in found), found[-1].unit).text if found else None
    return LastWord(max(log.name.attempt for log in logs), text, last_words(outputs[-1]))


def stored_logs(config: RunConfig, store: Store) -> list[AttemptLog]:
    """Every log file of the run, in the store or on this machine."""
    if isinstance(store, FolderStore):
        return _parse({path.name: path for path in store.path(logs_prefix(config.run)).glob("*.log")})
    stored: dict[str, Path | None] = {key.rpartition("/")[2]: None for key in store.list(logs_prefix(config.run))}
    return _parse(stored | {path.name: path for path in (local_state(config) / LOGS_FOLDER).glob("*.log")})


def _parse(files: Mapping[str, Path | None]) -> list[AttemptLog]:
    return [AttemptLog(parsed, path) for name, path in files.items() if (parsed := parse_log_name(name))]
