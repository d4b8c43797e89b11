"""The pipeline: one file per stage, wiring only. `python -m jobs.<stage>` is what a container and the local runner start."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from itool.errors import Interrupted


def _end_at_once(*_: object) -> NoReturn:
    sys.stderr.write("interrupted: stopped before the stage began. Run the same command again\n")
    sys.exit(Interrupted.exit_code)


if os.getpid() == 1:  # process 1 of a container never hears a SIGTERM that it has no handler for, and imports take a second or more
    signal.signal(signal.SIGTERM, _end_at_once)
