"""A folder store that knows what was asked of it: in S3 each would be a request."""

from __future__ import annotations

from pathlib import Path

from itool.artifacts.store import FolderStore


class CountedStore(FolderStore):
    """`asked` has a line for each look, `list PREFIX`, `read KEY` or `size KEY`, in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def list(self, prefix: str = "") -> dict[str, int]:
        self.asked.append(f"list {prefix}")
        return super().list(prefix)

    def read(self, key: str) -> bytes:
        self.asked.append(f"read {key}")
        return super().read(key)

    def size(self, key: str) -> int | None:
        self.asked.append(f"size {key}")
        return super().size(key)
