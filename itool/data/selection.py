"""How hard is an example, Eq. (4), and which of the buffer are worth a search: the hardest share of each stratum, the paper's α.

Selecting within the strata keeps examples in which no tool fits in the search.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from itool.errors import NumericalError
from itool.records import Example, Score

Quotas = Mapping[str, int]
"""How many examples of each stratum are searched."""

MOST_LOG_PERPLEXITY = 700.0
"""Little above it the exponential overflows, and JSON holds no infinity."""


def perplexity(logprobs: Sequence[float]) -> float:
    """How hard a ground-truth response is. Eq. (4), arXiv 2501.09766v1: `h = P(y | q, T)^(-1/n)` = exp(mean negative log-likelihood).

    `logprobs`: of each of the n ≥ 1 response tokens, natural logarithm. At most e^700. Raises NumericalError for NaN, which would look
    like the hardest response of all.
    """
    exponent = -math.fsum(logprobs) / len(logprobs)
    if math.isnan(exponent):
        raise NumericalError(
            "a perplexity is NaN: the model's logits are not finite", remedy="Use an earlier adapter or a smaller learning rate"
        )
    return math.exp(min(exponent, MOST_LOG_PERPLEXITY))


def quotas_of(examples: Iterable[Example | Score], fraction: float) -> Quotas:
    """`fraction` of each stratum, at least one."""
    return {stratum: math.ceil(fraction * count - 1e-9) for stratum, count in Counter(example.stratum for example in examples).items()}


def hardest(scores: Sequence[Score], quotas: Quotas, *, seed: int) -> list[Score]:
    """The same scores in the same order, with `selected` set on the hardest of each stratum.

    Hard is a low pass rate where one was measured, else a high perplexity. Among equally hard ones `seed` draws: more examples than are
    searched may have no right sample, and the iterations of a run, each with a seed of its own, should not all search the same of them.
    """
    selected: set[str] = set()
    for stratum, quota in quotas.items():
        members = sorted((s for s in scores if s.stratum == stratum), key=lambda score: (_ease(score), _draw(seed, score.example_id)))
        selected.update(score.example_id for score in members[:quota])
    return [score.model_copy(update={"selected": score.example_id in selected}) for score in scores]


def next_to_score(examples: Sequence[Example], scores: Sequence[Score], quotas: Quotas, *, seed: int) -> list[Example]:
    """The examples whose pass rate is to be measured next, given those measured so far; none when no other can change `hardest`.

    Nothing is harder than no right sample, and among equals the lot decides. So examples are measured in the order of the lot, until each
    stratum has its quota without a right sample: what comes later in that order cannot be selected. How many to ask for at a time is
    guessed from the share found so far, and a bit more, since many at once keep the policy busier than a few again.
    """
    known = {score.example_id: score for score in scores}
    wanted: list[Example] = []
    for stratum, quota in quotas.items():
        members = sorted((e for e in examples if e.stratum == stratum), key=lambda example: _draw(seed, example.id))
        measured = [known[example.id] for example in members if example.id in known]
        unsolved = sum(score.pass_rate == 0 for score in measured)
        missing = quota - unsolved
        if missing > 0:
            share = (unsolved + 1) / (len(measured) + 2)
            wanted += members[len(measured) :][: math.ceil((missing + 2 * math.sqrt(missing)) / share)]
    return wanted


def _ease(score: Score) -> float:
    return -(score.perplexity or 0.0) if score.pass_rate is None else score.pass_rate


def _draw(seed: int, example_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{example_id}".encode(), digest_size=8).digest()
