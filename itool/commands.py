"""Commands that messages tell a person to run, as they can be pasted: with the run, and with the root where it is not the default."""

from __future__ import annotations

import os
import shlex

from itool.paths import absolute_path, local_path

DEFAULT_ROOT = "runs"
ROOT_VARIABLE = "ITOOL_ROOT"


def itoolctl(words: str, root: str) -> str:
    """`itoolctl WORDS --root ROOT` in backquotes; without --root where the command finds that root without it."""
    default = os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    if root in (default, str(absolute_path(local_path(default)))):
        return f"`itoolctl {words}`"
    return f"`itoolctl {words} --root {shlex.quote(root)}`"


def resume(run: str, root: str) -> str:
    """The command that continues a stored run with its stored configuration."""
    return itoolctl(f"iterate --run {run}", root)


def removal(prefix: str, root: str) -> str:
    """The command that removes a damaged artifact."""
    return itoolctl(f"artifacts rm {prefix}", root)
