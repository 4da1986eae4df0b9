"""Multiple-choice items, as rows of an example set or as lines of MMLU-format files hold them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_OPTIONS = len(LETTERS)
# Names by which published sets call their options, besides one list called "options" or "choices".
NUMBERED = (("choice{}", 0), ("option{}", 1), ("option{}", 0), ("choice{}", 1))


@dataclass(frozen=True)
class Item:
    """A question with options in their published order.

    Attributes:
        question: the question alone.
        options: their texts, at least two.
        correct: index of the right one, or None where it is not known.
    """

    question: str
    options: tuple[str, ...]
    correct: int | None = None


def item_of(row: Mapping[str, Any]) -> Item | None:
    """Return the multiple-choice item that a row holds, or None.

    Options are a list called ``options`` or ``choices``, or columns ``choice0, choice1, ...`` or ``option1, ...``. The
    question is ``plain_prompt``, ``question`` or ``prompt``. The right one is ``correct`` (an index), or ``answer``
    where that is an index, a letter or the text of an option.
    """
    options = row.get("options") or row.get("choices")
    if not options:
        for pattern, first in NUMBERED:
            options = []
            while isinstance(row.get(pattern.format(first + len(options))), str):
                options.append(row[pattern.format(first + len(options))])
            if options:
                break
    if not options or not 2 <= len(options) <= MOST_OPTIONS or not all(isinstance(o, str) for o in options):
        return None
    question = row.get("plain_prompt") or row.get("question") or row.get("prompt")
    if not isinstance(question, str) or not question.strip():
        return None
    texts = tuple(options)
    return Item(question, texts, _correct(row, texts))


def _correct(row: Mapping[str, Any], options: tuple[str, ...]) -> int | None:
    for value in (row.get("correct"), row.get("answer")):
        text = str(value).strip() if value is not None else ""
        if isinstance(value, str) and value in options:
            return options.index(value)
        if text.isdecimal() and int(text) < len(options):
            return int(text)
        if len(text) == 1 and text in LETTERS[: len(options)]:
            return LETTERS.index(text)
    return None


def read_items(file: Path) -> list[Item]:
    """Read an MMLU-format file: question, four options and the right one (0 to 3, or A to D), with or without a header.

    Raises:
        BadInput: not such a file; every line that is wrong is named, up to ten.
    """
    try:
        with open(file, encoding="utf-8", newline="") as handle:
            lines = [row for row in csv.reader(handle) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(Problem(str(file), f"cannot be read: {error}", "give a CSV file in UTF-8")) from error
    if lines and lines[0][0].strip().lower() == "question":
        lines = lines[1:]
    items, problems = [], []
    for number, row in enumerate(lines, 1):
        correct = _correct({"answer": row[-1]}, tuple(row[1:-1]))
        if len(row) < 4 or correct is None:
            problems.append(
                Problem(f"{file}, row {number}", "is not an item", "write question, options, and 0 to 3 or A to D")
            )
        else:
            items.append(Item(row[0], tuple(row[1:-1]), correct))
    if not items and not problems:
        problems.append(Problem(str(file), "has no item", "give an MMLU-format file"))
    if problems:
        raise BadInput(problems[:10])
    return items
