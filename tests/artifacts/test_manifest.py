"""A manifest says exactly what was written, and nothing else passes for one."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itool.artifacts.manifest import (
    Counts,
    FileEntry,
    Manifest,
    NewerArtifact,
    content_digest,
    describe_folder,
    parse_manifest,
)
from itool.errors import ArtifactError

WHEN = datetime(2026, 11, 21, tzinfo=UTC)
HASHES = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
FILES = st.dictionaries(
    st.lists(st.text("abcé", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join),
    st.builds(FileEntry, size=st.integers(0, 2**40), sha256=HASHES),
    max_size=5,
)


def manifest(files: dict[str, FileEntry], **changes: object) -> Manifest:
    fields: dict[str, object] = {
        "run": "demo",
        "iteration": 0,
        "stage": "prepare",
        "key": "k" * 16,
        "files": files,
        "started": WHEN,
        "ended": WHEN,
    }
    return Manifest.model_validate(fields | changes)


@given(FILES, st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5), max_size=3))
def test_a_manifest_is_read_back_equal(files: dict[str, FileEntry], metrics: dict[str, object]) -> None:
    written = manifest(files, metrics=metrics, counts=Counts(incoming=3, kept=2, dropped={"too long": 1}))
    assert parse_manifest(written.to_json().encode(), "m") == written


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    written = manifest({"a.jsonl": FileEntry(size=10, sha256="0" * 64)}, metrics={"accuracy": 0.5})
    raw = bytearray(written.to_json().encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ArtifactError):
        assert parse_manifest(bytes(raw), "m") == written  # white space between tokens carries nothing


@pytest.mark.parametrize("cut", [0, 1, 100, -2])
def test_a_truncated_manifest_is_refused(cut: int) -> None:
    with pytest.raises(ArtifactError, match=r"run/manifest\.json is not a complete manifest"):
        parse_manifest(manifest({}).to_json().encode()[:cut], "run/manifest.json")


def test_a_manifest_of_a_newer_version_is_named_so() -> None:
    with pytest.raises(NewerArtifact, match=r"schema 99, this version reads up to \d+\. Use itool 9\.0 or newer"):
        parse_manifest(manifest({}, schema=99, code_version="9.0").to_json().encode(), "m")


@pytest.mark.parametrize("text", ["[]", "[1]", "7", "null", '"checksum"', "[" * 100_000, '{"checksum": ' + "[" * 100_000])
def test_json_that_is_no_object_is_no_manifest(text: str) -> None:
    with pytest.raises(ArtifactError, match="m is not a complete manifest"):
        parse_manifest(text.encode(), "m")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "model//etc/passwd", "./x", "a/./x", "a/", "x\0"])
def test_a_manifest_cannot_name_files_outside_itself(path: str) -> None:
    with pytest.raises(ValueError, match="leaves the artifact"):
        manifest({path: FileEntry(size=0, sha256="0" * 64)})


@given(FILES, st.integers(1, 10_000))
def test_the_digest_knows_contents_and_no_times(files: dict[str, FileEntry], seconds: int) -> None:
    first = manifest(files)
    later = manifest(dict(reversed(files.items())), ended=WHEN + timedelta(seconds=seconds), seconds=float(seconds), run="other")
    assert first.digest == later.digest
    assert first.digest != content_digest(files | {"one more": FileEntry(size=0, sha256="0" * 64)})


def test_a_folder_is_described_by_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/x").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"abc")
    files = describe_folder(tmp_path)
    assert files["a"] == FileEntry(size=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert list(files) == ["a", "model/x"]


@given(*[st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)) for _ in range(2)])
def test_counts_add_by_reason(left: dict[str, int], right: dict[str, int]) -> None:
    both = Counts(incoming=1, dropped=left).plus(Counts(incoming=2, kept=1, dropped=right))
    assert (both.incoming, both.kept) == (3, 1)
    assert both.dropped == {name: left.get(name, 0) + right.get(name, 0) for name in {*left, *right}}
