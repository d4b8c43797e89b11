"""Which buffer examples are worth a search: the hardest share of each stratum. Eq. (4) and the paper's α."""

from __future__ import annotations

import math
from collections.abc import Sequence

from itool.records import Score


def hardest(scores: Sequence[Score], *, fraction: float) -> list[Score]:
    """The same scores in the same order, with `selected` set on the hardest `fraction` of each stratum (at least one of each).

    Hard is a low pass rate where one was measured, else a high perplexity; the example id breaks ties. Selecting within the strata keeps
    examples in which no tool fits in the search.
    """
    selected: set[str] = set()
    for stratum in ("calls", "text"):
        members = sorted((s for s in scores if s.stratum == stratum), key=_hardness)
        selected.update(s.example_id for s in members[: math.ceil(fraction * len(members) - 1e-9)])
    return [score.model_copy(update={"selected": score.example_id in selected}) for score in scores]


def _hardness(score: Score) -> tuple[float, str]:
    """Sort key: the hardest first."""
    return (-(score.perplexity or 0.0) if score.pass_rate is None else score.pass_rate, score.example_id)
