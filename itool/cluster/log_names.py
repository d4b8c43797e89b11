"""Where the log of an attempt lies: `<run>/logs/i<k>-<stage>[-<shard>]-<attempt>.log` in the store; on this machine the same names."""

from __future__ import annotations

import re
from typing import NamedTuple

LOGS_FOLDER = "logs"
_NAME = re.compile(r"^i(?P<iteration>\d+)-(?P<stage>[a-z]+)(?:-(?P<shard>\d+))?-(?P<attempt>\d+)\.log$")


class LogName(NamedTuple):
    """What a log's file name says; `shard` is None for a stage, or a Job's pod, that is not one of several."""

    iteration: int
    stage: str
    shard: int | None
    attempt: int

    def __str__(self) -> str:
        shard = "" if self.shard is None else f"-{self.shard}"
        return f"i{self.iteration}-{self.stage}{shard}-{self.attempt}.log"


def parse_log_name(name: str) -> LogName | None:
    """What a file name says; None for a file that is no attempt's log."""
    found = _NAME.match(name)
    if found is None:
        return None
    shard = None if found["shard"] is None else int(found["shard"])
    return LogName(int(found["iteration"]), found["stage"], shard, int(found["attempt"]))


def logs_prefix(run: str) -> str:
    """The folder of a run's logs in its store."""
    return f"{run}/{LOGS_FOLDER}"


def log_key(run: str, name: LogName | str) -> str:
    """The key of a log in its run's store."""
    return f"{logs_prefix(run)}/{name}"
