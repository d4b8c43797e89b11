"""The report of a run, as it lies in the store."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from itool.artifacts.commit import commit
from itool.artifacts.manifest import Manifest
from itool.artifacts.resolve import resolve
from itool.artifacts.store import FolderStore
from itool.cli.compare import compare
from itool.cli.options import Output
from itool.cli.report import report
from itool.cluster.controller import Controller, config_key
from itool.cluster.leases import FolderLease
from itool.config import RunConfig
from itool.errors import ArtifactError, InputError
from itool.evaluate.report import build_report
from itool.operations.reports import _newest_report, find_report
from tests.cluster.in_memory_runner import InMemoryRunner
from tests.evaluate.fake_run import fake_inputs


@pytest.fixture(scope="module")
def report_json() -> str:
    return build_report(fake_inputs()).model_dump_json(indent=2)


def finish(root: Path, document: str, run: str = "demo") -> tuple[RunConfig, Path]:
    """A finished run whose report is this document: its configuration and the folder of the report's artifact."""
    config, store = RunConfig(root=str(root), run=run, iterations=1), FolderStore(root)
    Controller(config, store, InMemoryRunner(store, config), FolderLease(root / "lock")).run()
    found = list(resolve(store, config).values())[-1]
    assert found.prefix is not None
    assert found.manifest is not None
    output = root / f"output-{run}"
    output.mkdir()
    (output / "report.json").write_text(document, encoding="utf-8")
    (output / "report.html").write_text("<html>", encoding="utf-8")
    store.delete(f"{found.prefix}/manifest.json")
    commit(store, found.prefix, output, found.manifest.model_copy(update={"files": {}}))
    store.write(config_key(run), config.as_yaml().encode())
    return config, store.path(found.prefix)


def retrain(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"dpo": config.dpo.model_copy(update={"beta": 0.2})})


def flip_a_byte(artifact: Path, name: str, old: bytes, new: bytes) -> None:
    [file] = artifact.rglob(name)
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new, 1))


@pytest.mark.parametrize(
    ("current", "remedy"),
    [
        (False, r"\. `itoolctl iterate --run demo --root ROOT` makes it again"),
        (True, r"\. `itoolctl artifacts rm demo/i1/report/\w+ --root ROOT`, then `itoolctl iterate --run demo --root ROOT` makes"),
    ],
)
def test_a_report_of_another_shape_is_named_with_what_makes_it_again(tmp_path: Path, current: bool, remedy: str) -> None:
    config, _ = finish(tmp_path, '{"schema_version": 0}')
    with pytest.raises(InputError) as raised:
        find_report(config if current else retrain(config))
    shown = str(raised.value).replace(str(tmp_path), "ROOT")
    assert re.search(rf"demo/i1/report/.*/report.json is of another version of itool{remedy}", shown)


@pytest.mark.parametrize("current", [True, False])
@pytest.mark.parametrize(("name", "old", "new"), [("report.json", b'"correct": 1', b'"correct": 9'), ("report.html", b"<", b">")])
def test_an_altered_report_is_refused_with_what_removes_it(
    tmp_path: Path, report_json: str, *, current: bool, name: str, old: bytes, new: bytes
) -> None:
    config, artifact = finish(tmp_path, report_json)
    asked = config if current else retrain(config)
    assert find_report(asked).current is current
    flip_a_byte(artifact, name, old, new)
    remedy = rf"Remove it with `itoolctl artifacts rm demo/i1/report/{artifact.name} --root {re.escape(str(tmp_path))}` and run again"
    with pytest.raises(ArtifactError, match=rf"/{name} was altered: its SHA-256 is not the manifest's\. {remedy}"):
        find_report(asked)


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_report_that_lacks_a_file_is_damaged_not_outdated(tmp_path: Path, report_json: str, name: str) -> None:
    config, artifact = finish(tmp_path, report_json)
    [file] = artifact.rglob(name)
    file.unlink()
    with pytest.raises(ArtifactError, match=rf"/{name} is missing; remove it with `itoolctl artifacts rm demo/i1/report/"):
        find_report(config)


def test_report_and_compare_print_no_altered_number(tmp_path: Path, report_json: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, artifact = finish(tmp_path, report_json, "one")
    finish(tmp_path, report_json, "two")
    report("one", root=str(tmp_path))
    compare(["two", "one"], root=str(tmp_path))
    capsys.readouterr()
    flip_a_byte(artifact, "report.json", b'"correct": 1', b'"correct": 9')
    with pytest.raises(ArtifactError, match=r"report\.json was altered"):
        report("one", root=str(tmp_path))
    with pytest.raises(ArtifactError, match=r"report\.json was altered"):
        compare(["two", "one"], root=str(tmp_path))
    assert not capsys.readouterr().out


def test_compare_says_which_report_a_run_has_outgrown(tmp_path: Path, report_json: str, capsys: pytest.CaptureFixture[str]) -> None:
    finish(tmp_path, report_json, "one")
    config, _ = finish(tmp_path, report_json, "two")
    compare(["one", "two"], root=str(tmp_path), output=Output.json)
    before = json.loads(capsys.readouterr().out)["notes"]
    FolderStore(tmp_path).write(config_key("two"), retrain(config).as_yaml().encode())
    compare(["one", "two"], root=str(tmp_path), output=Output.json)
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == ["changed since the report that is compared (`itoolctl plan` says what is missing): two", *before]


def test_of_older_reports_the_newest_of_the_run_is_shown() -> None:
    day = datetime(2026, 11, 21, tzinfo=UTC)
    made = {
        prefix: Manifest(run="r", iteration=1, stage=stage, key="k" * 16, files={}, started=day, ended=day + timedelta(hours=hours))
        for prefix, stage, hours in (
            ("demo/i1/report/newer", "report", 2),
            ("demo/i1/report/older", "report", 1),
            ("demo/i1/dpo/last", "dpo", 3),
            ("demo2/i1/report/of-the-run-that-is-reused", "report", 4),
        )
    }
    assert _newest_report("demo", made)[0] == "demo/i1/report/newer"
    assert _newest_report("de", made) == (None, None)
