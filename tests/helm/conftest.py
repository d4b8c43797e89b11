"""Without helm on PATH the tests of the templates are skipped, visibly."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(autouse=True, scope="session")
def _helm() -> None:
    if shutil.which("helm") is None:
        pytest.skip("helm is not on PATH")
