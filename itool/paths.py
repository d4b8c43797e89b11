"""Paths of this machine, as they are opened and as messages show them."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(name: str | Path) -> Path:
    """Where a path of the configuration lies on this machine: `~` is the home folder, if there is one of that name."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises for the home of nobody


def absolute_path(path: Path) -> Path:
    """The same place as an absolute path without `..`. Links stay, but for one that `..` follows: what it leads to has that parent."""
    absolute = path.absolute()
    found = Path(absolute.anchor)
    for part in absolute.parts[1:]:
        if part == "..":
            found = Path(os.path.realpath(found) if found.is_symlink() else found).parent
        else:
            found /= part
    return found
