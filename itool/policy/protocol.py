"""What search, scoring and evaluation ask of a policy: samples, log-probabilities, and the probability of one-token options.

Everything is token ids; no policy sees or returns text. Calls are coroutines, so that many trees share one engine: the embedded policy
batches what is waiting, the vLLM client sends it. Results depend on the arguments (`seed` included), never on what else is in flight,
up to floating-point rounding of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True)
class Sample:
    """One draw: `token_ids` (the end-of-turn token included when it was sampled) and the policy's log-probability of each.

    Log-probabilities are of the distribution at temperature 1, whatever the sampling temperature was. `finished` says that the
    end-of-turn token was sampled; otherwise the sample ran into its token limit.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class Policy(Protocol):
    """A language model with at most one adapter, behind an engine.

    Every question raises InputError when its tokens are none of the model's or exceed its context, NumericalError when the model's logits
    are not finite, DependencyError when the engine is gone, ItoolError when it failed,
    Interrupted when it is waited for and the stage is to stop.
    """

    async def sample(self, prompt_ids: Sequence[int], *, count: int, max_tokens: int, temperature: float, seed: int) -> list[Sample]:
        """`count` independent continuations of `prompt_ids`; temperature 0 is greedy (then `count` equal samples).

        Sample i of a seed is the same whatever `count` is.
        """
        ...

    async def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """log P(token | everything before it) of each token of the continuation, temperature 1."""
        ...

    async def option_probabilities(self, prompt_ids: Sequence[int], option_ids: Sequence[int]) -> list[float]:
        """Probability of each option as the next token, renormalised over the options only. Eq. (7), arXiv 2501.09766v1."""
        ...

    def forget(self) -> None:
        """Drop what is kept of earlier requests: no later answer then depends on them, not even by rounding, so it repeats alone."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
