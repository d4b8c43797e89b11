"""What arguments look like in a query, and the value that a call must carry: one drawing function per kind of parameter.

A kind decides three things: the words a person uses ("half an hour"), the JSON value of the argument ("30m"), and the type tag that the
prompt shows (`duration`). Where two kinds read the same words but want different values (`duration` and `minutes`), the tag alone tells
which format is meant. This module knows no tool and no phrasing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Value = str | int | float | bool | list[str]

CITIES = (
    "Paris", "Lisbon", "Oslo", "Madrid", "Berlin", "Vienna", "Prague", "Rome", "Milan", "Athens", "Dublin", "London", "Boston", "Chicago",
    "Denver", "Seattle", "Austin", "Toronto", "Montreal", "Tokyo", "Osaka", "Seoul", "Delhi", "Mumbai", "Cairo", "Nairobi", "Lagos", "Lima",
    "Bogota", "Quito", "Havana", "Sydney", "Perth", "Auckland", "Zurich", "Geneva", "Munich", "Hamburg", "Warsaw", "Krakow",
    "Riga", "Tallinn",
    "Helsinki", "Bergen", "Naples", "Porto", "Seville", "Valencia", "New York", "San Diego", "Los Angeles", "Hong Kong", "Cape Town",
    "Tel Aviv", "Abu Dhabi", "Kuala Lumpur", "Buenos Aires", "Mexico City", "San Juan", "Santa Fe",
)  # fmt: skip
FIRST_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Karen", "Leo", "Maria", "Noah", "Olivia", "Peter",
    "Quinn", "Rosa", "Sam", "Tara", "Umar", "Vera", "Will", "Yuki", "Zoe", "Omar", "Nina", "Hugo", "Lena", "Ivan",
)  # fmt: skip
LAST_NAMES = (
    "Adams", "Baker", "Costa", "Diaz", "Evans", "Fischer", "Garcia", "Hall", "Ito", "Jones", "Khan", "Lopez", "Meyer", "Novak", "Ortiz",
    "Patel", "Reed", "Silva", "Tanaka", "Weber",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ITEMS = (
    "milk", "eggs", "bread", "rice", "butter", "cheese", "apples", "coffee", "tea", "sugar", "salt", "honey", "soup", "pasta", "beans",
    "onions", "garlic", "paper", "soap", "candles", "batteries", "flowers", "pens", "socks", "gloves", "olives", "lemons", "nuts", "yogurt",
    "corn", "peas", "tofu",
)  # fmt: skip
TOPIC_ADJECTIVES = (
    "quiet", "modern", "annual", "silver", "golden", "early", "local", "winter", "summer", "final", "secret", "broken", "hidden", "simple",
    "global", "gentle", "bright", "distant", "weekly", "royal",
)  # fmt: skip
TOPIC_NOUNS = (
    "budget", "garden", "river", "market", "project", "history", "report", "physics", "ocean", "forest", "mirror", "engine", "festival",
    "harbor", "island", "journey", "kitchen", "letter", "mountain", "museum", "orchard", "planet", "shadow", "station",
    "thunder", "village",
    "window", "bridge", "castle", "desert",
)  # fmt: skip
LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Greek", "Polish", "Turkish", "Arabic", "Hindi", "Korean", "Dutch", "Czech", "Swedish",
    "Danish", "Russian", "Thai",
)  # fmt: skip
_CURRENCIES = (("dollars", "USD"), ("euros", "EUR"), ("pounds", "GBP"), ("francs", "CHF"), ("yen", "JPY"))
_UNITS = (("kilos", "kg"), ("grams", "g"), ("liters", "l"), ("miles", "mi"), ("kilometers", "km"), ("meters", "m"))
_ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "w", "z",
)  # fmt: skip
_RHYMES = ("a", "an", "ar", "e", "el", "en", "er", "i", "in", "is", "o", "ol", "on", "or", "u", "um", "un", "y")

Drawn = tuple[str, Value]
"""The words in the query, and the argument's value."""


def invented_word(rng: random.Random, *, capital: bool = False) -> str:
    """A word that no list holds: pre-training copies these, so that the base learns to copy instead of to remember."""
    word = "".join(rng.choice(_ONSETS) + rng.choice(_RHYMES) for _ in range(rng.choice((2, 2, 3))))
    return word.capitalize() if capital else word


def _city(rng: random.Random, invented: float) -> Drawn:
    name = invented_word(rng, capital=True) if rng.random() < invented else rng.choice(CITIES)
    return name, name


def _person(rng: random.Random, invented: float) -> Drawn:
    first = invented_word(rng, capital=True) if rng.random() < invented else rng.choice(FIRST_NAMES)
    name = first if rng.random() < 0.5 else f"{first} {rng.choice(LAST_NAMES)}"
    return name, name


def _date(rng: random.Random, _: float) -> Drawn:
    form = rng.random()
    if form < 0.35:
        text = f"{rng.choice(('next', 'this'))} {rng.choice(WEEKDAYS)}"
    elif form < 0.55:
        text = rng.choice(WEEKDAYS)
    elif form < 0.7:
        text = rng.choice(("today", "tomorrow", "tonight", "next week", "next month", "this weekend"))
    else:
        text = f"{rng.choice(MONTHS)} {rng.randint(1, 28)}"
    return text, text


def _day(rng: random.Random, _: float) -> Drawn:
    month, day = rng.choice(MONTHS), rng.randint(1, 28)
    words = rng.choice((f"{month} {day}", f"{day} {month}", f"the {day} of {month}"))
    return words, f"{month} {day}"


def _clock(rng: random.Random) -> tuple[str, str]:
    """A time of day as said, and on the 24-hour clock."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 0, 0, 15, 30, 45))
    half = rng.choice(("am", "pm"))
    said = f"{hour} {half}" if minute == 0 else f"{hour}:{minute} {half}"
    return said, f"{hour % 12 + (12 if half == 'pm' else 0)}:{minute:02d}"


def _time(rng: random.Random, _: float) -> Drawn:
    said = _clock(rng)[0]
    return said, said


def _time24(rng: random.Random, _: float) -> Drawn:
    said, clock = _clock(rng)
    return (clock if rng.random() < 0.2 else said), clock


def _count(rng: random.Random, _: float) -> Drawn:
    number = rng.randint(2, 12)
    return (NUMBER_WORDS[number] if rng.random() < 0.5 else str(number)), number


def _round_amount(rng: random.Random) -> int:
    return rng.choice((rng.randint(2, 99), rng.randint(2, 99) * 5, rng.randint(1, 30) * 50))


def _amount(rng: random.Random, _: float) -> Drawn:
    number, (word, code) = _round_amount(rng), rng.choice(_CURRENCIES)
    return f"{number} {word}", f"{number} {code}"


def _price(rng: random.Random, _: float) -> Drawn:
    number = _round_amount(rng)
    return f"{number} {rng.choice(_CURRENCIES)[0]}", number


def _span(rng: random.Random) -> tuple[str, str, int]:
    """A stretch of time as said, in short form, and in minutes."""
    form = rng.random()
    if form < 0.1:
        return rng.choice((("half an hour", "30m", 30), ("an hour", "1h", 60)))
    if form < 0.5:
        hours = rng.randint(2, 9)
        return f"{rng.choice((str(hours), NUMBER_WORDS[hours]))} hours", f"{hours}h", 60 * hours
    minutes = rng.choice((5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 90))
    return f"{minutes} minutes", f"{minutes}m", minutes


def _duration(rng: random.Random, _: float) -> Drawn:
    said, short = _span(rng)[:2]
    return said, short


def _minutes(rng: random.Random, _: float) -> Drawn:
    said, minutes = _span(rng)[::2]
    return said, minutes


def _items(rng: random.Random, invented: float) -> Drawn:
    names = rng.sample(ITEMS, rng.choice((1, 2, 2, 3)))
    names = [invented_word(rng) if rng.random() < invented / 2 else name for name in names]
    return (names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"), names


def _text(rng: random.Random, invented: float) -> Drawn:
    words = [rng.choice(TOPIC_NOUNS)]
    if rng.random() < 0.6:
        words.insert(0, rng.choice(TOPIC_ADJECTIVES))
    if rng.random() < 0.25:
        words.append(rng.choice(TOPIC_NOUNS))
    text = " ".join(invented_word(rng) if rng.random() < invented else word for word in words)
    return text, text


def _code(rng: random.Random, _: float) -> Drawn:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
    code = f"{letters}-{rng.randint(100, 9999)}"
    return code, code


def _percent(rng: random.Random, _: float) -> Drawn:
    number = rng.randint(1, 20) * 5
    return rng.choice((f"{number}%", f"{number} percent")), number


def _quantity(rng: random.Random, _: float) -> Drawn:
    number, (word, unit) = rng.randint(2, 90), rng.choice(_UNITS)
    return f"{number} {word}", f"{number} {unit}"


def _degrees(rng: random.Random, _: float) -> Drawn:
    number = rng.randint(12, 30)
    return f"{number} degrees", number


def _language(rng: random.Random, _: float) -> Drawn:
    name = rng.choice(LANGUAGES)
    return name, name


_DRAW: dict[str, Callable[[random.Random, float], Drawn]] = {
    "city": _city, "person": _person, "date": _date, "day": _day, "time": _time, "time24": _time24, "count": _count, "amount": _amount,
    "price": _price, "duration": _duration, "minutes": _minutes, "items": _items, "text": _text, "code": _code, "percent": _percent,
    "quantity": _quantity, "degrees": _degrees, "language": _language,
}  # fmt: skip
_SCHEMAS: dict[str, dict[str, Any]] = {
    "count": {"type": "integer"},
    "price": {"type": "number"},
    "minutes": {"type": "integer", "format": "minutes"},
    "percent": {"type": "integer", "format": "percent"},
    "degrees": {"type": "integer", "format": "degrees"},
    "items": {"type": "array", "items": {"type": "string"}},
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
}
KINDS = (*_DRAW, "choice", "flag")
"""Every kind of parameter. `choice` and `flag` take their words from the tool, all others from this module."""


def draw_value(kind: str, rng: random.Random, invented: float = 0.0) -> Drawn:
    """Words and value for one argument. `invented` is the share of names that are made up instead of taken from the lists."""
    return _DRAW[kind](rng, invented)


def schema_of(kind: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """The JSON Schema of a parameter. Formats that JSON Schema lacks stand in `format`, which the prompt shows in place of the type."""
    if kind == "choice":
        return {"type": "string", "enum": list(choices)}
    return dict(_SCHEMAS.get(kind) or {"type": "string", "format": kind})


def type_tag(kind: str, choices: tuple[str, ...]) -> str:
    """The parameter's type as the prompt shows it; the chat template computes the same from `schema_of`."""
    if kind == "choice":
        return "|".join(choices)
    schema = _SCHEMAS.get(kind)
    if schema is None:
        return kind
    return str(schema.get("format") or {"array": "list"}.get(schema["type"], schema["type"]))
