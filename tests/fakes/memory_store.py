"""A store in memory: as quick as a test wants it, and down when a test says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from itool.errors import ArtifactError, DependencyError


@dataclass
class MemoryStore:
    """See itool.artifacts.store.Store."""

    root: str = "memory"
    objects: dict[str, bytes] = field(default_factory=dict)
    down: bool = False

    def size(self, key: str) -> int | None:
        self._call()
        return len(self.objects[key]) if key in self.objects else None

    def read(self, key: str) -> bytes:
        self._call()
        if key not in self.objects:
            raise ArtifactError(f"{key} does not exist")
        return self.objects[key]

    def write(self, key: str, data: bytes) -> None:
        self._call()
        self.objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        self._call()
        return self.objects.setdefault(key, data) is data

    def upload(self, source: Path, key: str, *, consume: bool = False) -> None:
        self.write(key, source.read_bytes())

    def download(self, key: str, target: Path) -> None:
        data = self.read(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def list(self, folder: str) -> dict[str, int]:
        self._call()
        start = f"{folder.strip('/')}/" if folder.strip("/") else ""
        return {key: len(data) for key, data in self.objects.copy().items() if key.startswith(start)}

    def delete(self, key: str) -> None:
        self._call()
        self.objects.pop(key, None)

    def local_path(self, key: str) -> Path | None:
        return None

    def _call(self) -> None:
        if self.down:
            raise DependencyError("S3 does not answer")
