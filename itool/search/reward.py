"""What a state is worth: outcome O(s), self-evaluation C(s), their sum R(s) and the reward of a step. Eq. (6)-(7).

O is exact and comes from the example's calls alone, never from its text, so an example that has only a checker is searched alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from itool.data.chat import evaluation_prompt
from itool.data.compare import Call, compare_calls
from itool.data.judge import judge
from itool.data.toolcall import scan
from itool.policy.protocol import Policy
from itool.records import Example

COMPARABLE = frozenset({"wrong_tool", "wrong_argument", "missing_call", "extra_call"})
"""The errors of a response whose calls could be read and compared."""


class Outcome(NamedTuple):
    """O(s), and for a terminal state the verdict on the whole response."""

    value: float
    correct: bool | None


def partial_outcome(text: str, example: Example) -> float:
    """O(s) of a state that is not finished, in [0, 1]: the agreement of its closed calls and arguments with the ground truth.

    Prose has no closed unit that could be checked before its end, and a text that can no longer become calls has lost: both 0.
    """
    result = scan(text, example.tools)
    if result.kind != "calls" or result.error is not None:
        return 0.0
    return agreement(result.calls, example.calls)


def terminal_outcome(text: str, finished: bool, example: Example) -> Outcome:
    """O(s) of a finished response: exactly 1 when it is right, else the agreement of its calls, which is below 1.

    A response that cannot be used at all (unreadable, cut off by the token limit, calls where text is right or text where calls are)
    is worth 0. Differs: the paper does not say what a response that is wrong in part is worth (docs/decisions/0010-outcome.md).
    """
    correct, error, calls = judge(text, finished, example)
    if correct:
        return Outcome(1.0, True)
    return Outcome(agreement(calls, example.calls) if error in COMPARABLE else 0.0, False)


def agreement(calls: Sequence[Call], expected: Sequence[Call]) -> float:
    """Agreeing units / (expected units + wrong units), order-free; a unit is a call's name or one argument with its typed value.

    1 exactly when nothing is missing, wrong or superfluous. A call that is still open lacks nothing yet that counts as wrong, only as
    missing; so the value of a right beginning grows with every unit that it closes.
    """
    comparison = compare_calls(calls, expected)
    agreeing = len(comparison.pairs) + comparison.matched_arguments
    units = _count_units(expected) + _count_units(calls) - agreeing
    return agreeing / units if units else 0.0


def _count_units(calls: Sequence[Call]) -> int:
    return sum(1 + len(call.arguments) for call in calls)


async def self_evaluation(policy: Policy, tokenizer: Any, example: Example, text: str) -> float:
    """C(s): the probability that the policy itself gives to "correct" (option B) for the query, the tools and the response so far.

    Eq. (7), arXiv 2501.09766v1, as one forward pass at temperature 0, renormalised over the two options.
    """
    prompt_ids, option_ids = evaluation_prompt(tokenizer, example, text)
    _incorrect, correct = await policy.option_probabilities(prompt_ids, option_ids)
    return correct


def state_reward(outcome: float, confidence: float | None, confidence_weight: float) -> float:
    """R(s) = O(s) + C(s). Eq. (6), arXiv 2501.09766v1. Differs: C has a weight; without self-evaluation (None) it counts nothing."""
    return outcome if confidence is None else outcome + confidence_weight * confidence


def step_reward(before: float, after: float) -> float:
    """r(s,a) = R(s') - R(s): what the step adds to the reward of its state. Section 3.3, arXiv 2501.09766v1."""
    return after - before
