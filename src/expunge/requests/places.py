"""Where an example came from, so that a problem found later still names the file and the line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import TypeVar

from datasets import Dataset

SOURCE_FILE = "source_file"
SOURCE_LINE = "source_line"
T = TypeVar("T")
LINE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv"})


def own_columns(examples: Dataset) -> str:
    """Name the columns that a user gave, without those that say where a row is from."""
    return ", ".join(c for c in examples.column_names if c not in ("id", SOURCE_FILE, SOURCE_LINE))


def unit_of(source: str) -> str:
    """Return what a position in this source counts: the physical ``line`` of a text file, otherwise the ``row``."""
    return "line" if PurePath(source).suffix.lower() in LINE_SUFFIXES else "row"


def place(examples: Dataset, index: int) -> str:
    """Say where one example came from.

    Args:
        examples: an example set; ``source_file`` and ``source_line`` are used where it has them.
        index: 0-based position in ``examples``.

    Returns:
        Such as ``forget.jsonl line 12``, or ``example 12`` for a set that was not read from a source.
    """
    if SOURCE_FILE in examples.column_names and SOURCE_LINE in examples.column_names:
        row = examples[index]
        return f"{row[SOURCE_FILE]} {unit_of(row[SOURCE_FILE])} {row[SOURCE_LINE]}"
    return f"example {index + 1}"


def some(items: Sequence[T], show: Callable[[T], str] = str, most: int = 5) -> str:
    """Show the first few of many things and say how many are left out."""
    shown = "; ".join(show(item) for item in items[:most])
    return f"{shown}; and {len(items) - most} more" if len(items) > most else shown


def pair_of(one: Dataset, other: Dataset) -> Callable[[tuple[int, int]], str]:
    """Return what shows a pair of positions, the first in ``one`` and the second in ``other``, as two places."""
    return lambda pair: f"{place(one, pair[0])} = {place(other, pair[1])}"
