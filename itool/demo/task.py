"""The built-in task: `generate` draws tool-use examples from nothing but a split, a count and a seed.

Three splits, disjoint by construction. `pretrain` comes from random tools (general.py) and never holds a tool of the task. `train` and
`held_out` share the thirty tools of tools.py, but each combination of tool, ask, cue and value belongs to one of them, by its hash. Within
a split no query comes twice, so that the pipeline's own division of `train` into warm-up, buffer and validation is disjoint as well.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from itool.demo import general
from itool.demo.compose import Allowed, Draft, Offer, combination, draft_answer, draft_call, draft_refusal
from itool.demo.phrasing import SMALL_TALK
from itool.demo.tools import TOOLS, ToolSpec
from itool.demo.values import draw_value, schema_of
from itool.records import Example, Message, Tool, ToolCall

Split = Literal["pretrain", "train", "held_out"]
NO_CALL_SHARE = 0.17
HELD_OUT_SHARE = 0.25
_BY_NAME = {tool.name: tool for tool in TOOLS}


def generate(split: Split, count: int, seed: int) -> list[Example]:
    """The first `count` examples of a split. A larger count only adds examples; the same arguments always give the same examples."""
    return [
        to_example(draft, f"demo-{split.replace('_', '-')}-{index:06d}") for index, draft in enumerate(islice(drafts(split, seed), count))
    ]


def drafts(split: Split, seed: int) -> Iterator[Draft]:
    """An endless stream of drafts without a repeated query."""
    seen: set[str] = set()
    index = 0
    while True:
        rng = random.Random(f"itool-demo:{split}:{seed}:{index}")
        draft = general.draft_example(rng) if split == "pretrain" else _draft_target(rng, held_out=split == "held_out")
        index += 1
        if draft.query not in seen:
            seen.add(draft.query)
            yield draft


def is_held_out(spent: str) -> bool:
    """Whether a combination belongs to the held-out set: a property of its text alone."""
    return hashlib.blake2b(spent.encode(), digest_size=4).digest()[0] < 256 * HELD_OUT_SHARE


def _draft_target(rng: random.Random, *, held_out: bool) -> Draft:
    def allowed(spent: str) -> bool:
        return is_held_out(spent) == held_out

    if rng.random() < NO_CALL_SHARE:
        return _draft_no_call(rng, allowed)
    wanted = _pick_wanted(rng)
    offers = _pick_offers(wanted, rng, excluded=frozenset())
    shown = {offer[0].name: offer for offer in offers}
    wishes = [draft_call(shown[spec.name], rng, allowed) for spec in wanted]
    return draft_answer(offers, wishes, rng)


def _pick_wanted(rng: random.Random) -> list[ToolSpec]:
    """One to three wishes; two of them may be for the same tool."""
    wanted = [rng.choice(TOOLS)]
    for _ in range(rng.choices((0, 1, 2), (0.58, 0.3, 0.12))[0]):
        wanted.append(wanted[0] if rng.random() < 0.2 else rng.choice(TOOLS))
    return wanted


def _pick_offers(wanted: list[ToolSpec], rng: random.Random, excluded: frozenset[str]) -> list[Offer]:
    """One to six candidate tools: the wanted ones, near-duplicates first, then any."""
    names = {spec.name: None for spec in wanted}
    size = max(len(names), rng.choices((1, 2, 3, 4, 5, 6), (0.1, 0.2, 0.22, 0.2, 0.16, 0.12))[0])
    rivals = [rival for spec in wanted for rival in spec.rivals if rng.random() < 0.7]
    pool = rivals + rng.sample([tool.name for tool in TOOLS], len(TOOLS))
    for name in pool:
        if len(names) < size and name not in excluded:
            names[name] = None
    offers = [(_BY_NAME[name], rng.randint(0, 1)) for name in names]
    rng.shuffle(offers)
    return offers


def _draft_no_call(rng: random.Random, allowed: Allowed) -> Draft:
    """A query for a tool that is not offered (its near-duplicates are), or small talk."""
    missing = rng.choice(TOOLS)
    if rng.random() < 0.75:
        wish = draft_call((missing, 0), rng, allowed)
        clause, spent = wish.clause, wish.combinations
    else:
        clause, spent = _small_talk(rng, allowed)
    rivals = [_BY_NAME[name] for name in missing.rivals]
    seeds = rivals[: rng.randint(0, len(rivals))] or [rng.choice([tool for tool in TOOLS if tool is not missing])]
    return draft_refusal(_pick_offers(seeds, rng, frozenset({missing.name})), clause, spent, rng)


def _small_talk(rng: random.Random, allowed: Allowed) -> tuple[str, tuple[str, ...]]:
    while True:
        sentence = rng.choice(SMALL_TALK)
        words, value = draw_value("text", rng)
        spent = combination("small_talk", sentence, "", value)
        if allowed(spent):
            return sentence.replace("{}", words), (spent,)


def to_tool(offer: Offer) -> Tool:
    """A tool as the record that the pipeline reads."""
    spec, version = offer
    properties = {param.names[version]: schema_of(param.kind, param.choices) for param in spec.params}
    required = [param.names[version] for param in spec.params if not param.optional]
    return Tool(name=spec.name, description=spec.about, parameters={"type": "object", "properties": properties, "required": required})


def to_example(draft: Draft, example_id: str) -> Example:
    """A draft as the record that the pipeline reads."""
    return Example(
        id=example_id,
        messages=[Message(role="user", content=draft.query)],
        tools=[to_tool(offer) for offer in draft.offers],
        calls=[ToolCall(name=name, arguments=arguments) for name, arguments in draft.calls],
        response=draft.response,
        source="demo",
    )
