"""The manifest: what an artifact is made of and where it came from. Its presence is the only "done" flag.

    <root>/<run>/i<k>/<stage>/<key>/manifest.json          written last, once
    <root>/<run>/i<k>/<stage>/<key>/<digest, 12 digits>/   the data files that it lists

`digest` covers paths and contents of the data files only, so two runs with equal results have equal digests, whatever the clock said.
The data folder carries the digest in its name: two attempts with different results never write over each other's files.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from itool.errors import ArtifactError
from itool.names import StageName
from itool.records import SCHEMA_VERSION
from itool.stages import StageId

MANIFEST_NAME = "manifest.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class NewerArtifact(ArtifactError):  # noqa: N818 - says what it is: nothing is wrong with it
    """An artifact that a newer version has written: whole, and to be kept."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FileEntry(_Part):
    """One data file."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


def _inside(path: str) -> str:
    """A path as `describe_folder` writes it. In S3 any other is a key too, and would be copied to wherever it leads on this machine."""
    plain = PurePosixPath(path)
    if path != str(plain) or not plain.parts or plain.is_absolute() or ".." in plain.parts or "\0" in path:
        raise ValueError(f"file path {path!r} leaves the artifact")
    return path


Files = dict[Annotated[str, AfterValidator(_inside)], FileEntry]
"""Data files by their path below the folder that holds them."""


class ArtifactRef(_Part):
    """An artifact that was read: where it stands and what was in it."""

    run: str
    iteration: int
    stage: StageName
    key: str
    digest: Sha256

    @property
    def id(self) -> StageId:
        """The stage that wrote it."""
        return StageId(self.iteration, self.stage)


class Counts(_Part):
    """What went in and what came out: `incoming` records, `kept` ones, and the dropped ones by reason."""

    incoming: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        reasons = [*self.dropped, *(reason for reason in other.dropped if reason not in self.dropped)]
        dropped = {reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in reasons}
        return Counts(incoming=self.incoming + other.incoming, kept=self.kept + other.kept, dropped=dropped)


class Manifest(_Part):
    """One finished artifact. `seconds` is the wall time of the work including `startup_seconds`, over all attempts that it resumed from.

    `peak_memory_bytes` is the resident memory of the process that finished it (of the largest of several shards).
    """

    schema_version: int = Field(SCHEMA_VERSION, alias="schema")
    run: str
    iteration: int
    stage: StageName
    stage_version: int = 1
    key: str
    shard: int = 0
    shards: int = 1
    inputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    files: Files
    counts: Counts = Counts()
    metrics: dict[str, Any] = Field(default_factory=dict)
    tokens: int = 0
    code_version: str = ""
    image_digest: str | None = None
    seed: int = 0
    started: datetime
    ended: datetime
    startup_seconds: float = 0.0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory_bytes: int | None = None

    @property
    def id(self) -> StageId:
        """The stage that wrote it."""
        return StageId(self.iteration, self.stage)

    @property
    def digest(self) -> str:
        """Content digest: SHA-256 over (path, sha256) of every file, in path order. Not cached: `model_copy` would copy a stale value."""
        return content_digest(self.files)

    @property
    def bytes(self) -> int:
        """Size of all data files."""
        return sum(entry.size for entry in self.files.values())

    def ref(self) -> ArtifactRef:
        """How another manifest names this artifact."""
        return ArtifactRef(run=self.run, iteration=self.iteration, stage=self.stage, key=self.key, digest=self.digest)

    def data_folder(self, prefix: str) -> str:
        """Key of the folder with the data files."""
        return f"{prefix}/{self.digest[:12]}"

    def file_key(self, prefix: str, path: str) -> str:
        """Key of one data file."""
        return f"{self.data_folder(prefix)}/{path}"

    def to_json(self) -> str:
        """The file's text. `checksum` covers all the rest, so that a flipped byte in the manifest is seen too."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document | {"checksum": _checksum(document)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """Read a manifest, naming `origin` in errors.

    Raises NewerArtifact when a newer version has written it, ArtifactError when it is not exactly what was written.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "checksum" not in document:
        raise ArtifactError(f"{origin} is not a complete manifest")
    checksum, schema = document.pop("checksum"), document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        version = document.get("code_version") or "of that schema"
        raise NewerArtifact(
            f"{origin} has schema {schema}, this version reads up to {SCHEMA_VERSION}", remedy=f"Use itool {version} or newer"
        )
    if checksum != _checksum(document):
        raise ArtifactError(f"{origin} was altered: its checksum does not match")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ArtifactError(f"{origin}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def artifact_prefix(run: str, stage: StageId, key: str) -> str:
    """Folder of an artifact: `<run>/i<k>/<stage>/<key>`."""
    return f"{run}/{stage}/{key}"


def manifest_key(prefix: str) -> str:
    """Key of an artifact's manifest."""
    return f"{prefix}/{MANIFEST_NAME}"


def content_digest(files: dict[str, FileEntry]) -> str:
    """SHA-256 over (path, sha256) pairs in path order."""
    pairs = sorted((path, entry.sha256) for path, entry in files.items())
    return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileEntry(size=file.tell(), sha256=digest.hexdigest())


def describe_folder(folder: Path) -> dict[str, FileEntry]:
    """Every file below a local folder, by POSIX path, in path order."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): describe_file(path) for path in paths}


@cache
def code_version() -> str:
    """What code ran: ITOOL_CODE_VERSION (set in an image), else the package version and, in a checkout, the commit."""
    if given := os.environ.get("ITOOL_CODE_VERSION"):
        return given
    try:
        version = metadata.version("itool")
    except metadata.PackageNotFoundError:
        version = "0"
    commit = _git_commit(Path(__file__).resolve().parents[2] / ".git")
    return f"{version}+g{commit[:12]}" if commit else version


def _git_commit(folder: Path) -> str | None:
    try:
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        if (folder / reference).is_file():
            return (folder / reference).read_text(encoding="utf-8").strip()
        packed = (folder / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
