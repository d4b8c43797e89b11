"""Without helm on PATH the tests of the templates are skipped, visibly; they fail where there is a cluster to test the chart on."""

from __future__ import annotations

import shutil

import pytest

from tests.missing import missing


@pytest.fixture(autouse=True, scope="session")
def _helm() -> None:
    if shutil.which("helm") is None:
        raise missing("helm is not on PATH")
