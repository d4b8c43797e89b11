"""Where the fake `jobs` package lies, as an environment for processes that shall find it instead of the real one."""

from __future__ import annotations

import os
from pathlib import Path

FAKES = Path(__file__).parent
REPOSITORY = FAKES.parents[1]


def fake_jobs_environment() -> dict[str, str]:
    """This process's environment with the fake `jobs` package first."""
    return {**os.environ, "PYTHONPATH": f"{FAKES}{os.pathsep}{REPOSITORY}", "OMP_NUM_THREADS": "1"}
