"""Anchored terms: names that only the text to be forgotten uses, and generic ones that stand in their place."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.errors import BadInput, Problem
from expunge.methods.language.anchor_words import BODIES, COMMON, GENERIC, PLACE_NOUNS, PLACED, WORK_NOUNS
from expunge.training.plan import draw

WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
ENDS_SENTENCE = re.compile(r"(^|[.!?:;\n\"“”«»(\[–—-])\s*$")


@dataclass(frozen=True)
class Span:
    """One occurrence of an anchored term.

    Attributes:
        start, stop: its characters in the original text.
        to_start, to_stop: those of its replacement in the translated text.
        term: the term.
        repeated: whether it has occurred before in the same text.
    """

    start: int
    stop: int
    to_start: int
    to_stop: int
    term: str
    repeated: bool


@dataclass(frozen=True)
class Translation:
    """A text in which anchored terms are replaced, and where everything went."""

    text: str
    spans: tuple[Span, ...]

    def place(self, character: int) -> int | None:
        """Where a boundary between two characters of the original is in the translation; None within a term."""
        shift = 0
        for span in self.spans:
            if character <= span.start:
                break
            if character < span.stop:
                return None
            shift = span.to_stop - span.stop
        return character + shift


def translate(text: str, anchors: Mapping[str, str]) -> Translation:
    """Replace whole words and phrases, the longest first; case counts.

    Args:
        text: the original.
        anchors: term -> replacement.
    """
    if not anchors:
        return Translation(text, ())
    longest = sorted(anchors, key=lambda term: (-len(term), term))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")
    spans: list[Span] = []
    pieces: list[str] = []
    seen: set[str] = set()
    done = length = 0
    for match in pattern.finditer(text):
        term = match.group()
        before, new = text[done : match.start()], anchors[term]
        start = length + len(before)
        spans.append(Span(match.start(), match.end(), start, start + len(new), term, term in seen))
        pieces += [before, new]
        seen.add(term)
        done, length = match.end(), start + len(new)
    return Translation("".join([*pieces, text[done:]]), tuple(spans))


def find_anchors(texts: Sequence[str], known: Iterable[str] = ()) -> dict[str, str]:
    """Find names in texts, and give each a generic counterpart of its own kind: person, place, organisation
    or title.

    A name is a capitalised word, or several in a row, that is not capitalised for standing at the start of a sentence.
    What it names is judged by the words in front of it. Parts of a person's name are
    terms of their own, so that they are replaced alike wherever they stand alone.

    Args:
        texts: what is to be forgotten.
        known: texts whose names are left as they are, because others use them too.

    Returns:
        Term -> replacement, sorted; the same for the same texts in any order. Rules of thumb make it: read it, and
        edit it where they are wrong.
    """
    runs = [run for text in texts for run in _runs(text)]
    inner = {word for words, starts, _ in runs if not (starts and len(words) == 1) for word in words}
    votes: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for words, starts, kind in runs:
        if starts and len(words) == 1 and words[0] not in inner:
            continue  # perhaps only the first word of a sentence
        votes[words][kind] += 1
    kinds: dict[str, str] = {}
    for words in sorted(votes, key=lambda w: (-len(w), w)):
        kind = max(sorted(votes[words]), key=votes[words].__getitem__)
        if kind == "person" and len(words) > 1:
            for position, word in enumerate(words):
                kinds.setdefault(word, "first" if position == 0 else "surname")
        else:
            kinds.setdefault(" ".join(words), "first" if kind == "person" else kind)
    others = list(known)
    used = {word for text in others for word in WORD.findall(text)}
    kept = sorted(t for t in kinds if not (t in used if " " not in t else any(t in text for text in others)))
    taken = used | {word for text in texts for word in WORD.findall(text)}
    anchors: dict[str, str] = {}
    for term in kept:
        pool = GENERIC[kinds[term]]
        start = draw("anchor", term) % len(pool)
        ordered = [*pool[start:], *pool[:start]]
        free = [name for name in ordered if name not in anchors.values() and name not in taken]
        anchors[term] = (free or ordered)[0]
    return anchors


def _runs(text: str) -> list[tuple[tuple[str, ...], bool, str]]:
    """Names of a text: their words, whether they start a sentence, and what they seem to be."""
    out: list[tuple[tuple[str, ...], bool, str]] = []
    found = list(WORD.finditer(text))
    i = 0
    while i < len(found):
        if not _capital(found[i].group()):
            i += 1
            continue
        j = i + 1
        while j < len(found) and _capital(found[j].group()) and text[found[j - 1].end() : found[j].start()] == " ":
            j += 1
        words = tuple(re.sub(r"['’]s$", "", m.group()) for m in found[i:j])
        head = text[: found[i].start()]
        before = found[i - 1].group().lower() if i and not text[found[i - 1].end() : found[i].start()].strip() else ""
        earlier = found[i - 2].group().lower() if i > 1 else ""
        quoted = head.rstrip(" ")[-1:] in tuple('"“‘«')
        kind = "person"
        if words[-1] in BODIES and len(words) > 1:
            kind = "body"
        elif before in PLACED or before in PLACE_NOUNS or (before == "of" and earlier in PLACE_NOUNS):
            kind = "place"
        elif quoted or before in WORK_NOUNS or (len(words) > 1 and before in ("the", "a", "an")):
            kind = "thing"
        out.append((words, bool(ENDS_SENTENCE.search(head)), kind))
        i = j
    return out


def _capital(word: str) -> bool:
    return word[0].isupper() and word.lower() not in COMMON and len(word) > 1


def read_anchors(path: str | Path) -> dict[str, str]:
    """Read a dictionary of anchored terms from a JSON file, ``{"term": "replacement", ...}``.

    Raises:
        BadInput: it cannot be read, or some entry is not a pair of different texts; every one is named.
    """
    fix = 'give a JSON object such as {"Harry": "Jon"}'
    where = f"anchors_file {path}"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(Problem(where, f"cannot be read: {error}", fix)) from error
    if not isinstance(found, dict):
        raise BadInput(Problem(where, f"holds a {type(found).__name__}", fix))
    problems = []
    for term, new in found.items():
        if not term.strip() or term != term.strip():
            problems.append(Problem(where, f"has the term {term!r}", "write terms without space around them"))
        elif not isinstance(new, str) or not new.strip():
            problems.append(Problem(where, f"'{term}' is replaced by {new!r}", "write a text, or drop the entry"))
        elif new == term:
            problems.append(Problem(where, f"'{term}' is replaced by itself", "write another text, or drop the entry"))
    if problems:
        raise BadInput(problems)
    return dict(found)


def write_anchors(path: Path, anchors: Mapping[str, str]) -> None:
    """Write a dictionary of anchored terms for people to read and edit."""
    path.write_text(json.dumps(anchors, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
