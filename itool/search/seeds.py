"""Seeds of the search: a hash of what is drawn, so that a draw depends neither on the order of work nor on what ran before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def draw_seed(run_seed: int, iteration: int, example_id: str, state_ids: Sequence[int], visit: int) -> int:
    """The seed of one sampling request: 63 bits over run, iteration, example, the state's token ids and how often it was drawn from.

    `visit` makes a state that is visited again draw something new; `iteration` does the same for an example that is searched again.
    """
    recipe = json.dumps([run_seed, iteration, example_id, list(state_ids), visit], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(recipe.encode()).digest()[:8]) >> 1
