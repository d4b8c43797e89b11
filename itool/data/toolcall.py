"""The response syntax: `[name(key=value, ...), ...]`, or plain text when no tool fits.

One scanner reads it for everyone: `parse_calls` for data, boundaries for the steps of the search, closed calls and arguments for partial
rewards, `judge.judge` for the verdict. It reads what models and public data sets write: names that are no identifiers (ToolACE), JSON or
Python literals, either quote, quotes inside quotes, and several lists in a row.

The scanner never raises and takes time proportional to the text. Boundaries of a partial text are the first boundaries of every
continuation, so a search may cut a response before it is finished.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from itool.errors import InputError
from itool.records import Tool, ToolCall

BoundaryKind = Literal["name", "argument", "call", "sentence", "end"]
MAX_DEPTH = 64
MAX_NAME_CHARS = 200


class ToolCallSyntaxError(InputError):
    """A response starts as calls and cannot be read to its end."""


class Boundary(NamedTuple):
    """Where a syntactic unit closes: `offset` is the number of characters up to and including its last one."""

    offset: int
    kind: BoundaryKind


@dataclass(slots=True)
class ScannedCall:
    """One call as far as it was read: only arguments whose closing `,` or `)` was seen; `closed` once its `)` was."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    closed: bool = False


@dataclass(slots=True)
class Scan:
    """What a text is, so far.

    `complete`: a text, or calls whose last `]` was seen. `error`: why no continuation can become readable calls (then `boundaries` end
    before it). A text that only opens a bracket counts as calls until it turns out to be prose.
    """

    kind: Literal["calls", "text", "empty"]
    calls: list[ScannedCall]
    complete: bool
    error: str | None
    boundaries: list[Boundary]


def scan(text: str, tools: Sequence[Tool] = ()) -> Scan:
    """Read a response, or the beginning of one. The names of `tools` are read whole, whatever characters they hold."""
    scanner = _Scanner(text, tools)
    if not scanner.rest_is_space() and text[scanner.position] == "[":
        result = scanner.read_calls()
        if result is not None:
            return result
    return _scan_prose(text)


def parse_calls(text: str, tools: Sequence[Tool] = ()) -> list[ToolCall]:
    """The calls of a complete response; an empty list means that it is prose.

    Raises ToolCallSyntaxError when it starts as calls and is broken or cut off.
    """
    result = scan(text, tools)
    if result.kind != "calls":
        return []
    if result.error is not None or not result.complete:
        reason = result.error or "the text ends inside the calls"
        raise ToolCallSyntaxError(f"response {_shorten(text)!r} cannot be read as calls: {reason}")
    return [ToolCall(name=call.name, arguments=call.arguments) for call in result.calls]


def render_calls(calls: Sequence[ToolCall]) -> str:
    """Calls in the response syntax, values as JSON: `[f(a="x", b=3), g()]`.

    Raises InputError for a value that JSON has no literal for.
    """
    rendered = (f"{call.name}({', '.join(f'{key}={render_value(value)}' for key, value in call.arguments.items())})" for call in calls)
    return f"[{', '.join(rendered)}]"


def render_value(value: Any, *, compact: bool = False) -> str:
    """One JSON literal. Raises InputError for a value that JSON has no literal for."""
    separators = (",", ":") if compact else (", ", ": ")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators)
    except (TypeError, ValueError):
        raise InputError(f"argument value {value!r} has no JSON literal") from None


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


# A sentence ends where space follows its mark, else `3.5` would be two; CJK marks need none. A line that ends without a mark ends one too.
_SENTENCE_END = re.compile(r"""(?<![.!?])[.!?]++["'”’)\]]*+(?=\s)|[。！？]|(?<=[^\s.!?"'”’)\]])\n""")


def _scan_prose(text: str) -> Scan:
    if not text or text.isspace():
        return Scan("empty", [], False, None, [])
    boundaries = [Boundary(match.end(), "sentence") for match in _SENTENCE_END.finditer(text)]
    return Scan("text", [], True, None, boundaries)


class _EndOfText(Exception):  # noqa: N818 - a signal inside this module
    """More text is needed to go on."""


class _Fault(Exception):  # noqa: N818 - a signal inside this module
    """No continuation can make the text readable."""


_SPACE = re.compile(r"\s*+")
_NAME = re.compile(rf'[^()\[\]{{}}"=,\n]{{1,{MAX_NAME_CHARS}}}+')
_KEY = re.compile(r"""[^=,()\[\]{}"']++""")
_TO_QUOTE = {quote: re.compile(rf"[^{quote}\\]*+(?:\\.[^{quote}\\]*+)*+{quote}", re.DOTALL) for quote in "\"'"}
_BARE = re.compile(r"""[^,()\[\]{}\s"'=:]++""")
_NUMBER = re.compile(
    r"[+-]?(?:(?P<whole>[0-9]{1,4000})|[0-9]{1,400}\.[0-9]*|\.[0-9]+|[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+|\.[0-9]+[eE][+-]?[0-9]+)"
)
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "/": "/", '"': '"', "'": "'", "\n": ""}


@dataclass(slots=True)
class _Frame:
    """An open list, tuple or dict inside a value."""

    closer: str
    items: list[Any] | dict[str, Any]
    key: str | None = None

    def add(self, value: Any) -> None:
        if isinstance(self.items, list):
            self.items.append(value)
        else:
            assert self.key is not None
            self.items[self.key] = value
            self.key = None


class _Scanner:
    """One pass over one text. `position` only grows."""

    def __init__(self, text: str, tools: Sequence[Tool]) -> None:
        self.text = text
        self.position = 0
        self.names = _longest_first(tuple(tool.name for tool in tools))
        self.calls: list[ScannedCall] = []
        self.boundaries: list[Boundary] = []

    def rest_is_space(self) -> bool:
        """Skip white space; say whether nothing follows."""
        self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]  # matches the empty string
        return self.position == len(self.text)

    def read_calls(self) -> Scan | None:
        """All lists of calls, as far as they go; None when the text opens a bracket and is prose all the same."""
        complete = False
        error = None
        try:
            while True:
                complete = False
                self._read_list()
                complete = self.rest_is_space()
                if complete:
                    break
                if self.text[self.position] in ",;":
                    self.position += 1
                if self._peek() != "[":
                    raise _Fault("text follows the calls")
        except _EndOfText:
            pass
        except _Fault as fault:
            if not self.calls:
                return None
            error = f"{fault} (character {self.position + 1})"
        return Scan("calls", self.calls, complete, error, self.boundaries)

    def _read_list(self) -> None:
        self.position += 1
        first = len(self.calls)
        while True:
            if self._peek() == "]" and len(self.calls) > first:
                break
            self._read_call()
            separator = self._peek()
            if separator == ",":
                self.position += 1
            elif separator != "]":
                raise _Fault("a call is followed by neither `,` nor `]`")
        self._close("end")

    def _read_call(self) -> None:
        call = ScannedCall(self._read_name())
        self.calls.append(call)
        self._close("name")
        while True:
            if self._peek() == ")":
                call.closed = True
                self._close("call")
                return
            key = self._read_key(call)
            value = self._read_value()
            if self._peek() not in ",)":
                raise _Fault(f"argument {key} is followed by neither `,` nor `)`")
            call.arguments[key] = value
            if self.text[self.position] == ",":
                self._close("argument")

    def _close(self, kind: BoundaryKind) -> None:
        """Step over the character that closes a unit."""
        self.position += 1
        self.boundaries.append(Boundary(self.position, kind))

    def _peek(self) -> str:
        """The next character that is not space."""
        if self.rest_is_space():
            raise _EndOfText
        return self.text[self.position]

    def _read_name(self) -> str:
        """A tool's name; leaves `position` at its `(`. Known names first, the longest first: they may hold any character."""
        start = self.position
        for name in self.names:
            if self.text.startswith(name, start):
                self.position = start + len(name)
                if self._peek() == "(":
                    return name
                self.position = start
            elif name.startswith(self.text[start : start + len(name)]):
                raise _EndOfText
        match = _NAME.match(self.text, start)
        if match is None or not match.group().strip():
            raise _Fault("a tool's name is missing")
        self.position = match.end()
        if self.position == len(self.text) and len(match.group()) < MAX_NAME_CHARS:
            raise _EndOfText
        if not self.text.startswith("(", self.position):
            raise _Fault("a tool's name is followed by no `(`")
        return match.group().strip()

    def _read_key(self, call: ScannedCall) -> str:
        match = _KEY.match(self.text, self.position)
        if match is None:
            raise _Fault(f"an argument of {call.name} has no name")
        if match.end() == len(self.text):
            raise _EndOfText
        if self.text[match.end()] != "=":
            raise _Fault(f"an argument of {call.name} has no name")
        key = match.group().strip()
        if not key or key in call.arguments:
            raise _Fault(f"argument {key} of {call.name} is given twice" if key else f"an argument of {call.name} has no name")
        self.position = match.end() + 1
        return key

    def _read_value(self) -> Any:
        """One literal of an argument. Open containers stand on a list, not on Python's stack, so depth cannot raise."""
        if self._peek() not in "[{(":
            return self._read_scalar(",)")
        stack = [self._open_frame()]
        while True:
            frame = stack[-1]
            char = self._peek()
            if char == frame.closer and frame.key is None:
                self.position += 1
                stack.pop()
                if not stack:
                    return frame.items
                self._add(stack[-1], frame.items)
            elif isinstance(frame.items, dict) and frame.key is None:
                frame.key = self._read_dict_key(char)
            elif char in "[{(":
                if len(stack) == MAX_DEPTH:
                    raise _Fault(f"a value is nested deeper than {MAX_DEPTH}")
                stack.append(self._open_frame())
            else:
                self._add(frame, self._read_scalar("," + frame.closer))

    def _open_frame(self) -> _Frame:
        opener = self.text[self.position]
        self.position += 1
        return _Frame(")", []) if opener == "(" else _Frame("]", []) if opener == "[" else _Frame("}", {})

    def _add(self, frame: _Frame, value: Any) -> None:
        frame.add(value)
        separator = self._peek()
        if separator == ",":
            self.position += 1
        elif separator != frame.closer:
            raise _Fault(f"a value is followed by neither `,` nor `{frame.closer}`")

    def _read_dict_key(self, char: str) -> str:
        if char not in "\"'":
            raise _Fault("a key of a dictionary is not a string")
        key = self._read_string(":")
        self._peek()
        self.position += 1
        return key

    def _read_scalar(self, closers: str) -> Any:
        if self.text[self.position] in "\"'":
            return self._read_string(closers)
        match = _BARE.match(self.text, self.position)
        if match is None:
            raise _Fault("a value is missing")
        if match.end() == len(self.text):
            raise _EndOfText
        word = match.group()
        value = _WORDS[word] if word in _WORDS else _read_number(word)
        self.position = match.end()
        return value

    def _read_string(self, closers: str) -> str:
        """A string. A quote inside it that none of `closers` follows belongs to it: data holds `"say "hi" twice"` and `'it's'`."""
        start = self.position + 1
        to_quote = _TO_QUOTE[self.text[self.position]]
        self.position = start
        while True:
            match = to_quote.match(self.text, self.position)
            if match is None:
                raise _EndOfText
            self.position = match.end()
            if self._peek() in closers:
                return _unescape(self.text[start : match.end() - 1])
            self.position = match.end()


@lru_cache(maxsize=4096)
def _longest_first(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=lambda name: (-len(name), name)))


def _read_number(word: str) -> int | float:
    match = _NUMBER.fullmatch(word)
    if match is None:
        raise _Fault(f"value {_shorten(word, 30)} is neither a JSON nor a Python literal")
    if match.group("whole"):
        return int(word)
    number = float(word)
    if not math.isfinite(number):
        raise _Fault(f"number {_shorten(word, 30)} is too large")
    return number


def _unescape(content: str) -> str:
    """Undo JSON's and Python's escapes; a backslash before anything else stays, and so does half of a surrogate pair, which is no text."""
    return _ESCAPE.sub(_unescape_one, content) if "\\" in content else content


def _unescape_one(match: re.Match[str]) -> str:
    high, low, unicode, latin, char = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    if unicode or latin:
        code = int(unicode or latin, 16)
        return match.group() if 0xD800 <= code <= 0xDFFF else chr(code)
    return _ESCAPED.get(char, match.group())
