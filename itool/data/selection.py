"""Which buffer examples are worth a search: the hardest share of each stratum. Eq. (4) and the paper's α."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from itool.records import Score


def hardest(scores: Sequence[Score], *, fraction: float, seed: int) -> list[Score]:
    """The same scores in the same order, with `selected` set on the hardest `fraction` of each stratum (at least one of each).

    Hard is a low pass rate where one was measured, else a high perplexity. Among equally hard ones `seed` draws: more examples than are
    searched may have no right sample, and the iterations of a run, each with a seed of its own, should not all search the same of them.
    Selecting within the strata keeps examples in which no tool fits in the search.
    """
    selected: set[str] = set()
    for stratum in ("calls", "text"):
        members = sorted((s for s in scores if s.stratum == stratum), key=lambda score: _hardness(score, seed))
        selected.update(s.example_id for s in members[: math.ceil(fraction * len(members) - 1e-9)])
    return [score.model_copy(update={"selected": score.example_id in selected}) for score in scores]


def _hardness(score: Score, seed: int) -> tuple[float, bytes]:
    """Sort key: the hardest first."""
    drawn = hashlib.blake2b(f"{seed}:{score.example_id}".encode(), digest_size=8).digest()
    return (-(score.perplexity or 0.0) if score.pass_rate is None else score.pass_rate, drawn)
