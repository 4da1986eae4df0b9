"""Whom or what a question is about, found from the questions themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

_WORD = re.compile(r"\w+")
# A word that names somebody occurs in few questions about others.
_COMMON = 0.2


def name_spans(questions: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Find the name that each question is about, whatever the language.

    A name is the stretch of words that all questions of a group have and few questions of other groups have. Without
    groups each question is a group of its own.

    Args:
        questions: example id -> text.
        groups: example id -> group, or empty.

    Returns:
        Example id -> (start, end) in characters; questions without such words are left out.
    """
    words = {i: set(_WORD.findall(text)) for i, text in questions.items()}
    members: dict[str, list[str]] = {}
    for i in questions:
        members.setdefault(groups.get(i, i), []).append(i)
    spread = Counter(word for ids in members.values() for word in set.union(*(words[i] for i in ids)))
    found = {}
    for ids in members.values():
        own = set.intersection(*(words[i] for i in ids))
        own = {word for word in own if spread[word] - 1 <= _COMMON * (len(members) - 1)}
        for i in ids:
            places = [m.span() for m in _WORD.finditer(questions[i]) if m.group() in own]
            if places:
                found[i] = (places[0][0], places[-1][1])
    return found
