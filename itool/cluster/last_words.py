"""The last thing that a stage's output has to say, as one line: what a person wants to read when it failed."""

from __future__ import annotations

import json

_TAIL_BYTES = 16384


def last_words(output: bytes | str) -> str:
    """The last line that is neither empty, nor an underline of a traceback, nor says how far the work is; empty when there is none."""
    text = output if isinstance(output, str) else output[-_TAIL_BYTES:].decode(errors="replace")
    for raw in reversed(text.splitlines()):
        line = raw.strip()
        if line and not line.startswith(('{"done"', "^")):
            return _message_of(line)
    return ""


def _message_of(line: str) -> str:
    """The text of a log line: `error` or `event` of a JSON line, else the line itself."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):  # a model's "[[[[..." is a line, too
        return line.removeprefix("error: ").removeprefix("interrupted: ")
    if not isinstance(event, dict):
        return line
    return str(event.get("error") or event.get("event") or line)
