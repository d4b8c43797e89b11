"""The lines of a pod's log that is asked for again and again, each once: a connection breaks, and a node keeps only the end of a long log.

Every request asks from the second of the newest line on (the API takes no finer time), so its answer repeats what is known of that second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass
class TimedLines:
    """How far a log was read. Lines may share a time: CRI-O gives one to all that it reads at once."""

    _newest: str = ""
    _of_newest: int = 0
    _known: str = ""
    _repeated: int = 0
    _half: bytes = b""
    _answered: bool = False

    def begin(self) -> str:
        """Begin another request. Returns the time to ask from; "" for the whole log."""
        self._answered = False
        return f"{self._newest[:19]}Z" if self._newest else ""

    def take(self, chunk: bytes) -> bytes:
        """What a piece of the answer, every line of which begins with its time, adds: whole lines, without their times."""
        if not self._answered:  # a new answer begins with a whole line, and with what is known
            self._known, self._repeated, self._half, self._answered = self._newest, self._of_newest, b"", True
        *lines, self._half = (self._half + chunk).split(b"\n")
        return b"".join(text + b"\n" for line in lines if (text := self._new(line)) is not None)

    def end(self) -> bytes:
        """The line without an end with which the last answer ended or broke off, once; nothing when there is none."""
        half, self._half = self._half, b""
        return (self._new(half) or b"") if half else b""

    def _new(self, line: bytes) -> bytes | None:
        """A line's text; None for one that is known, or has no time."""
        stamp, _, text = line.partition(b" ")
        moment = comparable(stamp.decode(errors="replace"))
        if not moment or moment < self._known:
            return None
        if moment == self._known and self._repeated:
            self._repeated -= 1
            return None
        if moment > self._newest:
            self._newest, self._of_newest = moment, 0
        self._of_newest += moment == self._newest
        return text


def comparable(stamp: str) -> str:
    """A log line's time in UTC with all nine digits of its fraction, so that text sorts as time does; a node writes in its own time zone.

    "" for what is no time, which begins a line of the kubelet's own.
    """
    try:
        seconds = datetime.fromisoformat(stamp).astimezone(UTC)
    except ValueError:
        return ""
    fraction = re.search(r"\.(\d+)", stamp)
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{fraction[1] if fraction else '':0<9}"
