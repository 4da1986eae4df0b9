"""People of the fictitious world, their names, and chance that is the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from expunge.data import fictitious_words as words


@dataclass(frozen=True)
class Person:
    """Somebody who does not exist.

    Attributes:
        index: 0-based position in the world.
        id: identifier, the ``group`` of all examples about the person.
        name: full name, unique in the world.
        facts: relation -> value, in a fixed order.
        mentor: index of the person's mentor.
    """

    index: int
    id: str
    name: str
    facts: Mapping[str, str]
    mentor: int


class PeopleSplit(NamedTuple):
    """Who is to be forgotten, who is to be kept and whom the model never meets."""

    forget: tuple[Person, ...]
    retain: tuple[Person, ...]
    holdout: tuple[Person, ...]


def number_of(*key: object) -> int:
    """Return 64 bits that depend on nothing but the key: the same on every machine and in every version of Python."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def draws(size: int, *key: object) -> Iterator[int]:
    """Yield each number below ``size`` once, in an order that depends on the key."""
    seen: set[int] = set()
    attempt = 0
    while len(seen) < size:
        drawn = number_of(*key, attempt) % size
        attempt += 1
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


def unique_texts(count: int, make: Callable[[int, int], str], *key: object) -> list[str]:
    """Make ``count`` texts, none twice; each depends on the key and on those before only.

    Args:
        count: how many.
        make: (64 random bits, attempt from 0) -> a text.
        key: what chance depends on.
    """
    made: dict[str, None] = {}
    for index in range(count):
        attempt = 0
        while (text := make(number_of(*key, index, attempt), attempt)) in made:
            attempt += 1
        made[text] = None
    return list(made)


def full_name(number: int, attempt: int = 0) -> str:
    """Put a first and a last name together from syllables."""
    parts = []
    for choices in (words.FIRST_STARTS, words.FIRST_ENDS, words.LAST_STARTS, words.LAST_ENDS):
        number, choice = divmod(number, len(choices))
        parts.append(choices[choice])
    return f"{parts[0]}{parts[1]} {parts[2]}{parts[3]}"


def book_title(number: int, attempt: int = 0) -> str:
    """Put a title together; of two words, or of three where those of two words run out in a large world."""
    number, adjective = divmod(number, len(words.TITLE_ADJECTIVES))
    number, noun = divmod(number, len(words.TITLE_NOUNS))
    title = f"{words.TITLE_ADJECTIVES[adjective]} {words.TITLE_NOUNS[noun]}"
    return title if attempt < 4 else f"{title} and {words.TITLE_NOUNS[number % len(words.TITLE_NOUNS)]}"
