"""Whether an answer means the same as the ground truth, for the metric that pre-training logs.

The pipeline scores with `itool.data.toolcall`, which this package does not import.
"""

from __future__ import annotations

import ast
import json
from collections import Counter


def exact_match(answer: str, truth: str) -> bool:
    """Equal calls in any order with equal arguments in any order; where the truth is a sentence, any sentence."""
    expected, given = _calls(truth), _calls(answer)
    if expected is None:
        return given is None and bool(answer.strip()) and not answer.lstrip().startswith("[")
    return given == expected


def _calls(text: str) -> Counter[str] | None:
    """The calls as a multiset of canonical strings, or None when the text is not a list of calls."""
    if not text.startswith("["):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        return Counter(_canonical(call) for call in tree.elts) if isinstance(tree, ast.List) else None
    except (SyntaxError, ValueError):
        return None


def _canonical(call: ast.expr) -> str:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("not a call")
    arguments = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    return json.dumps([call.func.id, arguments], sort_keys=True)


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    return ast.literal_eval(node)
