"""report.html: the report and the tree explorer as one file that needs no network.

Python only puts the parts together: template, style, scripts and the data as JSON. The page draws with `textContent` and SVG, never with
markup from data; `<`, `>` and `&` are escaped in the JSON, and a content security policy admits exactly the style and the script that are
in the file, by hash. Whatever a data set or a model writes stays text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from importlib import resources
from typing import Any

from itool.evaluate.explorer import Explorer
from itool.evaluate.report_schema import Report

SCRIPTS = ("report_dom.js", "report_charts.js", "report_tree.js", "report.js")


def render_html(report: Report, explorer: Explorer) -> str:
    """The complete page."""
    style = _asset("report.css")
    script = "'use strict';\n(() => {\n" + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    data = {"report": report.model_dump(mode="json"), "explorer": explorer.model_dump(mode="json")}
    values = {
        "title": html.escape(f"{report.run} · iTool report"),
        "policy": f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'",
        "style": style,
        "data": embedded_json(data),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _asset("report.html"))


def embedded_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it; numbers that are not finite become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written to a file
        case _:
            return value


def _asset(name: str) -> str:
    return resources.files(__package__ or "itool.evaluate").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
