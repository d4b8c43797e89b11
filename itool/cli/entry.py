"""What the `itoolctl` script runs: the command line, behind a handler for SIGTERM that is there before anything heavy is imported.

The first process of a pod does not hear a signal that it has no handler for: one that is stopped in its first second would run on until
it is killed. Commands that have something to end in order bring handlers of their own.
"""

from __future__ import annotations

import signal

from itool.artifacts.process import end_at_once


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, end_at_once)
    from itool.cli.main import main as command_line  # noqa: PLC0415 - takes most of a second on a busy node

    command_line()
