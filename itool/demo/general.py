"""The general distribution that the base is pre-trained on: random tools with random parameters, never a tool of the built-in task.

A tool is a random verb and noun with one to four parameters; a parameter has a random name and kind. Most arguments are announced by the
parameter's own name ("with rank 3") or by words typical of the kind ("on Friday"); one in seven borrows names and cues from the built-in
task, so that these words are not entirely new to the base. Half of all names in queries are invented, which leaves copying as the only
strategy. Duplicate verbs and nouns among the candidates make reading the whole tool name worthwhile.
"""

from __future__ import annotations

import random

from itool.demo.compose import Draft, Offer, draft_answer, draft_call, draft_refusal
from itool.demo.phrasing import GENERAL_SMALL_TALK
from itool.demo.tools import TOOL_NAMES, TOOLS, Param, ToolSpec
from itool.demo.values import KINDS, draw_value, invented_word

VERBS = (
    ("book", "reserve"), ("cancel", "drop"), ("find", "look up"), ("create", "make"), ("delete", "remove"), ("update", "change"),
    ("send", "mail"), ("share", "pass on"), ("open", "unlock"), ("close", "shut"), ("start", "begin"), ("stop", "end"), ("rent", "hire"),
    ("buy", "purchase"), ("sell", "offer"), ("check", "inspect"), ("compare", "weigh up"), ("rate", "grade"), ("print", "put on paper"),
    ("scan", "read"), ("paint", "color"), ("clean", "wash"), ("fix", "repair"), ("move", "shift"), ("copy", "clone"), ("merge", "combine"),
    ("split", "divide"), ("sort", "order"), ("count", "tally"), ("plan", "prepare"), ("join", "enter"), ("leave", "quit"),
    ("list", "show"), ("export", "save"), ("import", "load"), ("approve", "accept"), ("reject", "refuse"), ("pause", "hold"),
    ("play", "run"), ("record", "log"), ("measure", "gauge"), ("ship", "deliver"), ("track", "follow"), ("assign", "give"),
    ("publish", "release"), ("archive", "store"), ("tag", "mark"), ("draw", "sketch"), ("test", "try"), ("get", "fetch"),
)  # fmt: skip
NOUNS = (
    "ticket", "car", "boat", "bike", "house", "garage", "room", "photo", "video", "album", "song", "movie", "book", "chapter", "page",
    "contract", "invoice", "order", "coupon", "gift", "parcel", "letter", "form", "survey", "poll", "vote", "team", "group",
    "club", "class",
    "lesson", "exam", "grade", "task", "project", "budget", "plan", "route", "map", "tour", "visit", "meeting", "party", "concert", "game",
    "match", "score", "recipe", "cake", "menu", "pizza", "drink", "plant", "tree", "garden", "pet", "dog", "robot", "drone", "camera",
    "sensor", "door", "gate", "lamp", "fan", "oven", "fridge", "pump", "tank", "engine", "server", "backup", "file", "folder", "table",
    "chart", "report", "slide", "memo", "label", "badge", "key", "account", "loan", "policy", "claim", "refund", "deposit",
    "salary", "bonus",
    "shift", "job", "resume", "visa", "permit", "license", "patient", "dose", "clinic", "bed", "sample", "battery", "bus",
    "train", "flight",
)  # fmt: skip
WORDS = (
    "alpha", "area", "base", "block", "bound", "branch", "brand", "case", "center", "chain", "code", "cost", "cycle", "depth", "detail",
    "edge", "entry", "factor", "field", "focus", "frame", "front", "goal", "guard", "hint", "index", "input", "kind", "layer",
    "limit", "line",
    "link", "main", "mark", "mask", "mode", "name", "node", "option", "origin", "output", "owner", "part", "peak", "phase", "pick", "point",
    "port", "range", "rank", "ratio", "ref", "rule", "scale", "scope", "second", "side", "size", "slot", "source", "span", "spot", "stage",
    "state", "step", "style", "target", "term", "theme", "tier", "token", "topic", "track", "type", "unit", "user", "value",
    "view", "width",
    "zone", "first", "last", "old", "new", "left", "right", "top", "from", "to", "start", "end",
)  # fmt: skip
CHOICES = (
    "red", "blue", "green", "black", "white", "small", "large", "medium", "tiny", "fast", "slow", "soft", "hard", "hot", "cold", "warm",
    "north", "south", "east", "west", "round", "flat", "open", "shared", "private", "public", "gold", "silver", "basic", "premium", "steel",
    "wood", "glass", "cotton", "spicy", "sweet", "sour", "loud", "calm", "dark", "light", "short", "long", "deep", "wide",
    "urgent", "normal",
)  # fmt: skip
NAMED_CUES = (
    "with {name} {}", "with the {name} {}", "{name} {}", "the {name} is {}", "set {name} to {}", "using {} as {name}", "{} as the {name}",
    "and {name} {}", "{name}: {}",
)  # fmt: skip
NAMED_FLAGS = (
    "with {name}|without {name}", "{name} on|{name} off", "including {name}|no {name}", "{name} please|not {name}",
    "and {name}|and no {name}", "{name} wanted|{name} not needed",
)  # fmt: skip
KIND_CUES = {
    "city": ("in {}", "near {}", "around {}"), "person": ("for {}", "with {}", "to {}", "from {}"),
    "date": ("on {}", "for {}", "{}", "by {}"),
    "day": ("on {}", "for {}", "dated {}"), "time": ("at {}", "around {}", "from {}"), "time24": ("at {}", "by {}", "before {}"),
    "count": ("for {} people", "{} times", "{} of them"), "amount": ("for {}", "below {}", "worth {}", "up to {}"),
    "price": ("for {}", "under {}", "at most {}", "over {}"), "duration": ("for {}", "lasting {}", "within {}"),
    "minutes": ("for {}", "taking {}", "in {}"), "items": ("with {}", "containing {}", "namely {}"),
    "text": ("about {}", "called {}", "on {}"),
    "code": ("number {}", "with code {}", "{}"), "percent": ("at {}", "by {}", "with {} off"),
    "quantity": ("of {}", "weighing {}", "about {}"),
    "degrees": ("at {}", "to {}", "up to {}"), "language": ("in {}", "into {}", "speaking {}"),
    "choice": ("{}", "in {}", "a {} one", "as {}"),
}  # fmt: skip
KIND_NAMES = {
    "city": ("city", "place", "town", "location"), "person": ("person", "contact", "customer"), "date": ("date", "day", "when"),
    "day": ("date", "day", "due"), "time": ("time", "hour"), "time24": ("time", "clock"), "count": ("count", "number", "quantity"),
    "amount": ("amount", "sum", "price"), "price": ("price", "cost", "budget"), "duration": ("duration", "length"),
    "minutes": ("minutes", "time"),
    "items": ("items", "things", "entries"), "text": ("title", "topic", "subject", "text"), "code": ("code", "id", "number"),
    "percent": ("percent", "discount", "share"), "quantity": ("weight", "amount", "load"), "degrees": ("degrees", "heat"),
    "language": ("language", "tongue"), "choice": ("kind", "type", "style", "color"),
}  # fmt: skip
ASKS = (
    "{verb} a {noun}",
    "{verb} the {noun}",
    "{verb} my {noun}",
    "{verb} {noun}",
    "I want to {verb} a {noun}",
    "I need to {verb} the {noun}",
)
ABOUTS = ("{Verb} a {noun}", "{Verb} the {noun}", "{Verb} one {noun}")
TASK_SHARE = 0.15
TASK_WORDS = sorted({word for name in TOOL_NAMES for word in name.split("_")})
TASK_PARAMS = tuple(param for tool in TOOLS for param in tool.params)


def draft_example(rng: random.Random, *, largest: int = 6, most_calls: int = 3, openness: float = 0.0) -> Draft:
    """One example over random tools. `largest` bounds the candidates and `most_calls` the wishes: pre-training starts with small ones.

    `openness` is the share of nouns (half of it: verbs, parameters) from outside the closed lists above: words that the built-in task
    combines (never into one of its own tools) and invented ones. Only reading a name off the schema gets those right.
    """
    calls = rng.choices(range(1, most_calls + 1), (0.6, 0.28, 0.12)[:most_calls])[0]
    refusal = rng.random() < 0.15
    specs = _draw_tools(rng, max(calls, rng.randint(1, largest)) + refusal, openness)
    offers: list[Offer] = [(spec, 0) for spec in specs]
    invented = rng.choice((0.2, 0.8))
    if refusal:
        missing = offers.pop(0)
        clause = _small_talk(rng) if rng.random() < 0.2 else draft_call(missing, rng, _any, invented).clause
        return draft_refusal(_shuffled(offers, rng), clause, (), rng)
    wanted = [offers[0] if rng.random() < 0.2 else offers[index] for index in range(calls)]
    wishes = [draft_call(offer, rng, _any, invented) for offer in wanted]
    return draft_answer(_shuffled(offers, rng), wishes, rng)


def _any(_: str) -> bool:
    return True


def _shuffled(offers: list[Offer], rng: random.Random) -> list[Offer]:
    return rng.sample(offers, len(offers))


def _small_talk(rng: random.Random) -> str:
    sentence = rng.choice(GENERAL_SMALL_TALK)
    while "{}" in sentence:
        sentence = sentence.replace("{}", draw_value("text", rng, 0.5)[0], 1)
    return sentence


def _draw_tools(rng: random.Random, count: int, openness: float) -> list[ToolSpec]:
    """Distinct tools; later ones often share the verb or the noun of an earlier one."""
    drawn: dict[str, ToolSpec] = {}
    pairs: list[tuple[tuple[str, str], str]] = []
    while len(drawn) < count:
        verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
        near = rng.random()
        if pairs and near < 0.3:
            verb = rng.choice(pairs)[0]
        elif pairs and near < 0.6:
            noun = rng.choice(pairs)[1]
        elif openness:
            verb, noun = _open_words(verb, noun, rng, openness)
        name = f"{verb[0]}_{noun}"
        if name not in TOOL_NAMES and name not in drawn:
            drawn[name] = _draw_tool(name, verb, noun, rng, openness)
            pairs.append((verb, noun))
    return list(drawn.values())


def _open_words(verb: tuple[str, str], noun: str, rng: random.Random, openness: float) -> tuple[tuple[str, str], str]:
    if rng.random() < openness / 2:
        word = rng.choice(TASK_WORDS)
        verb = (word, word)
    if rng.random() < openness:
        noun = rng.choice(TASK_WORDS) if rng.random() < 0.7 else invented_word(rng)
    return verb, noun


def _draw_tool(name: str, verb: tuple[str, str], noun: str, rng: random.Random, openness: float) -> ToolSpec:
    said = verb[0] if rng.random() < 0.75 else verb[1]
    asks = tuple(ask.format(verb=said, noun=noun) for ask in ASKS)
    about = rng.choice(ABOUTS).format(Verb=verb[0].capitalize(), noun=noun)
    return ToolSpec(name, about, asks, _draw_params(rng, max(TASK_SHARE, openness / 2)))


def _draw_params(rng: random.Random, task_share: float) -> tuple[Param, ...]:
    """One to four parameters that can be told apart: by name, or by kind where the cue does not say the name."""
    params: dict[str, Param] = {}
    bare_kinds: set[str] = set()
    wanted = rng.choice((1, 2, 2, 3, 3, 4))
    while len(params) < wanted:
        param, named = _draw_param(rng, task_share)
        family = _FAMILIES.get(param.kind, param.kind)
        if param.names[0] in params or (not named and family in bare_kinds):
            continue
        bare_kinds.add(family)
        params[param.names[0]] = param
    return tuple(params.values())


_FAMILIES = {
    "day": "date", "time24": "time", "price": "amount", "minutes": "duration", "text": "name", "person": "name", "city": "name",
}  # fmt: skip
"""Kinds that look alike in a query: without the parameter's name, at most one of each family fits into a tool."""


def _draw_param(rng: random.Random, task_share: float) -> tuple[Param, bool]:
    """A parameter, and whether its cues say its name."""
    style = rng.random()
    optional = rng.random() < 0.25
    if style < task_share:
        borrowed = rng.choice(TASK_PARAMS)
        return Param((rng.choice(borrowed.names),), borrowed.kind, borrowed.cues, optional, borrowed.choices), False
    kind = rng.choice(KINDS)
    choices = tuple(rng.sample(CHOICES, rng.choice((2, 3, 3, 4)))) if kind == "choice" else ()
    if style < 0.5 and kind != "flag":
        name = rng.choice(KIND_NAMES[kind]) if rng.random() < 0.5 else _random_name(rng)
        return Param((name,), kind, KIND_CUES[kind], optional, choices), False
    name = _random_name(rng) if rng.random() < 0.8 else rng.choice(KIND_NAMES.get(kind, ("extra", "bonus", "cover")))
    patterns = NAMED_FLAGS if kind == "flag" else NAMED_CUES
    cues = tuple(cue.replace("{name}", name.replace("_", " ")) for cue in patterns)
    return Param((name,), kind, cues, optional, choices), True


def _random_name(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.5:
        return rng.choice(WORDS)
    if style < 0.8:
        return "_".join(rng.sample(WORDS, 2))
    return invented_word(rng)
