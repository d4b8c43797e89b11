"""The exact verdict on one response: what evaluation, terminal outcomes O(s), pass rates and pass@k all ask."""

from __future__ import annotations

from typing import NamedTuple

from itool.data.compare import compare_calls
from itool.data.toolcall import scan
from itool.records import Example, ToolCall


class Verdict(NamedTuple):
    """`error` is None when correct, else one of the fixed phrases of `records.Prediction`. `calls` are those read to their end."""

    correct: bool
    error: str | None
    calls: list[ToolCall]


def judge(text: str, finished: bool, example: Example) -> Verdict:
    """Whether a response answers an example: the same calls in any order, or any text where no tool fits.

    `text` holds no end-of-turn token; `finished` says that one was sampled. A response that ran into its token limit is never correct.
    """
    result = scan(text, example.tools)
    calls = [ToolCall(name=call.name, arguments=call.arguments) for call in result.calls if call.closed]
    error = _find_error(result.kind, finished and result.complete, calls, example)
    return Verdict(error is None, error, calls)


def _find_error(kind: str, readable: bool, calls: list[ToolCall], example: Example) -> str | None:
    if kind == "calls" and not example.calls:
        return "call_instead_of_text"
    if kind == "text" and example.calls:
        return "text_instead_of_call"
    if not readable:
        return "unparseable"
    return compare_calls(calls, example.calls).error if example.calls else None
