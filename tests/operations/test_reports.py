"""The report of a run, as it lies in the store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from itool.artifacts.commit import commit
from itool.artifacts.resolve import resolve
from itool.artifacts.store import FolderStore
from itool.cluster.controller import Controller
from itool.cluster.leases import FolderLease
from itool.config import RunConfig
from itool.errors import InputError
from itool.operations.reports import find_report
from tests.cluster.in_memory_runner import InMemoryRunner


@pytest.mark.parametrize(
    ("beta", "remedy"),
    [
        (0.2, r"\. `itoolctl iterate --run demo --root ROOT` makes it again"),
        (0.1, r"\. `itoolctl artifacts rm demo/i1/report/\w+ --root ROOT`, then `itoolctl iterate --run demo --root ROOT` makes"),
    ],
)
def test_a_report_of_another_shape_is_named_with_what_makes_it_again(tmp_path: Path, beta: float, remedy: str) -> None:
    config, store = RunConfig(root=str(tmp_path), iterations=1), FolderStore(tmp_path)
    Controller(config, store, InMemoryRunner(store, config), FolderLease(tmp_path / "lock")).run()
    found = list(resolve(store, config).values())[-1]
    assert found.prefix is not None
    assert found.manifest is not None
    output = tmp_path / "output"
    output.mkdir()
    (output / "report.json").write_text('{"schema_version": 0}')
    store.delete(f"{found.prefix}/manifest.json")
    commit(store, found.prefix, output, found.manifest.model_copy(update={"files": {}}))
    changed = config.model_copy(update={"dpo": config.dpo.model_copy(update={"beta": beta})})
    with pytest.raises(InputError) as raised:
        find_report(changed)
    shown = str(raised.value).replace(str(tmp_path), "ROOT")
    assert re.search(rf"demo/i1/report/.*/report.json is of another version of itool{remedy}", shown)
