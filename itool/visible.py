"""Text from elsewhere, such that a terminal shows it and obeys none of it.

Names, values and messages come from data sets, models, pods and stores. Printed as they are, an escape sequence among them could clear the
screen, set the clipboard or write over the line above, and a bidirectional override could show a name backwards. Every such character
becomes `\\uXXXX`, which is also how JSON writes it: a document for scripts keeps its meaning.
"""

from __future__ import annotations

import re

# Controls but tab and line feed, Unicode's line separators, bidirectional overrides and isolates, and halves of surrogate pairs, which no
# stream takes.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text without what a terminal would obey."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
