"""A finding of `itoolctl doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from itool.errors import ItoolError


@dataclass(frozen=True)
class Check:
    """One finding. `missing` means that a run will fail, with `exit_code`; `note` that something optional or tight should be known."""

    name: str
    state: Literal["ok", "note", "missing"]
    finding: str
    remedy: str = ""
    exit_code: int = ItoolError.exit_code

    @property
    def line(self) -> str:
        """The finding and what to do about it."""
        return f"{self.finding}. {self.remedy}" if self.remedy else self.finding
