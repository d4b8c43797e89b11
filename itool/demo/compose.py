"""From tools to one drafted example: the query's words, the calls that answer it, and the response text.

Both the built-in task (task.py) and the distribution that the base is pre-trained on (general.py) draft through this module, so formats
agree by construction. A draft also lists its *combinations* - tool, ask, cue and value of every argument - which is what keeps train and
held-out apart: a predicate on combinations says which may appear.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from itool.demo.phrasing import ENDINGS, JOINTS, NO_TOOL_ANSWERS, OPENERS
from itool.demo.tools import Param, ToolSpec
from itool.demo.values import Value, draw_value

Offer = tuple[ToolSpec, int]
"""A tool as it stands in the prompt: what it is, and the schema version shown."""

Allowed = Callable[[str], bool]
DRAWS_PER_SLOT = 60


@dataclass(frozen=True)
class DraftCall:
    """One wish in words, and the call that fulfils it, with arguments in the order in which the words give them."""

    offer: Offer
    clause: str
    arguments: dict[str, Value]
    combinations: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """An example before it becomes a record: the prompt's parts, the response, and the combinations that it spends."""

    query: str
    offers: tuple[Offer, ...]
    calls: tuple[tuple[str, dict[str, Value]], ...]
    response: str
    combinations: tuple[str, ...]


def render_calls(calls: Sequence[tuple[str, dict[str, Value]]]) -> str:
    """Calls in the response syntax: one bracketed list, values as JSON, no spaces around separators."""
    rendered = (f"{name}({','.join(f'{key}={_literal(value)}' for key, value in arguments.items())})" for name, arguments in calls)
    return f"[{','.join(rendered)}]"


def _literal(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def combination(tool: str, ask: str, cue: str, value: Value) -> str:
    """The unit that only one of train and held-out may hold."""
    return f"{tool}|{ask}|{cue}|{_literal(value)}"


def draft_call(offer: Offer, rng: random.Random, allowed: Allowed, invented: float = 0.0) -> DraftCall:
    """Words and arguments for one use of a tool; draws again until every combination is allowed."""
    while True:
        drafted = _try_call(offer, rng, allowed, invented)
        if drafted is not None:
            return drafted


def _try_call(offer: Offer, rng: random.Random, allowed: Allowed, invented: float) -> DraftCall | None:
    spec, version = offer
    ask = rng.choice(spec.asks)
    slots = [param for param in spec.params if not param.optional or rng.random() < 0.45]
    rng.shuffle(slots)
    phrases, arguments, spent = [], {}, []
    for param in slots:
        for _ in range(DRAWS_PER_SLOT):
            cue = rng.choice(param.cues)
            words, value = _draw_slot(param, cue, rng, invented)
            spend = combination(spec.name, ask, cue, value)
            if allowed(spend):
                break
        else:
            return None
        phrases.append(words)
        arguments[param.names[version]] = value
        spent.append(spend)
    return DraftCall(offer, _join_clause(ask, phrases, rng), arguments, tuple(spent))


def _draw_slot(param: Param, cue: str, rng: random.Random, invented: float) -> tuple[str, Value]:
    """The words that give one argument, and its value."""
    if param.kind == "flag":
        yes = rng.random() < 0.5
        return cue.split("|")[0 if yes else 1], yes
    if param.kind == "choice":
        choice = rng.choice(param.choices)
        return cue.replace("{}", choice), choice
    said, drawn = draw_value(param.kind, rng, invented)
    if param.kind == "text" and rng.random() < 0.3:
        said = f'"{said}"'
    return cue.replace("{}", said), drawn


def _join_clause(ask: str, phrases: list[str], rng: random.Random) -> str:
    """The ask and its slot phrases: mostly in a row, at times with a comma, at times one phrase first."""
    style = rng.random()
    if style < 0.12 and phrases:
        return f"{phrases[0]}, {' '.join([ask, *phrases[1:]])}"
    if style < 0.24 and len(phrases) > 1:
        return f"{' '.join([ask, *phrases[:-1]])}, {phrases[-1]}"
    return " ".join([ask, *phrases])


def finish_query(clauses: Sequence[str], rng: random.Random) -> str:
    """One message from several wishes."""
    text = clauses[0]
    for clause in clauses[1:]:
        joint = rng.choice(JOINTS)
        text += joint + clause
    return rng.choice(OPENERS) + text + rng.choice(ENDINGS)


def draft_answer(offers: Sequence[Offer], wishes: Sequence[DraftCall], rng: random.Random) -> Draft:
    """An example whose wishes all have a tool. The order of calls and of arguments varies, as it does between human annotators."""
    query = finish_query([wish.clause for wish in wishes], rng)
    calls = [(wish.offer[0].name, _ordered(wish, rng)) for wish in wishes]
    if len(calls) > 1 and rng.random() < 0.15:
        calls.reverse()
    spent = tuple(spend for wish in wishes for spend in wish.combinations)
    return Draft(query, tuple(offers), tuple(calls), render_calls(calls), spent)


def _ordered(wish: DraftCall, rng: random.Random) -> dict[str, Value]:
    """The arguments in schema order, or now and then in the order of the words."""
    if rng.random() < 0.2:
        return wish.arguments
    spec, version = wish.offer
    names = [param.names[version] for param in spec.params]
    return {name: wish.arguments[name] for name in names if name in wish.arguments}


def draft_refusal(offers: Sequence[Offer], clause: str, spent: Sequence[str], rng: random.Random) -> Draft:
    """An example for whose wish no offered tool fits: the right answer is a sentence."""
    return Draft(finish_query([clause], rng), tuple(offers), (), rng.choice(NO_TOOL_ANSWERS), tuple(spent))
