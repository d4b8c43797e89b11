"""Commands in messages: pasted, they must find the run that the message is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from itool.commands import removal, resume


def test_the_default_root_is_not_named_and_any_other_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ITOOL_ROOT", raising=False)
    assert resume("demo", "runs") == resume("demo", str(tmp_path / "runs")) == "`itoolctl iterate --run demo`"
    assert removal("demo/i1/dpo/0123", "s3://bucket/it") == "`itoolctl artifacts rm demo/i1/dpo/0123 --root s3://bucket/it`"
    assert resume("demo", "my runs") == "`itoolctl iterate --run demo --root 'my runs'`"
    monkeypatch.setenv("ITOOL_ROOT", "elsewhere")
    assert resume("demo", "elsewhere") == "`itoolctl iterate --run demo`"
    assert resume("demo", "runs") == "`itoolctl iterate --run demo --root runs`"
