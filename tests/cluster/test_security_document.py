"""docs/security.md lists the controller's permissions as the code has them."""

from __future__ import annotations

import re
from pathlib import Path

from itool.cluster.client import PERMISSIONS, QUEUE_PERMISSIONS

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


def test_the_table_of_permissions_is_the_codes() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("| resource | verbs | for |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]
    assert {resource: tuple(verbs.split(", ")) for resource, verbs, _ in rows} == PERMISSIONS | QUEUE_PERMISSIONS
