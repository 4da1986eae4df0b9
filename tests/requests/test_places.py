from __future__ import annotations

import pytest
from datasets import Dataset

from expunge.requests.places import pair_of, place, some, unit_of


@pytest.mark.parametrize(
    ("source", "unit"), [("a/b.jsonl", "line"), ("b.CSV", "line"), ("b.parquet", "row"), ("owner/name", "row")]
)
def test_unit_of(source: str, unit: str) -> None:
    assert unit_of(source) == unit


def test_place_with_and_without_a_source() -> None:
    known = Dataset.from_dict({"id": ["x", "y"], "source_file": ["f.csv", "g.parquet"], "source_line": [4, 9]})
    unknown = Dataset.from_dict({"id": ["x", "y"]})
    assert place(known, 0) == "f.csv line 4"
    assert pair_of(known, unknown)((1, 0)) == "g.parquet row 9 = example 1"


def test_some_only_shows_what_is_printed() -> None:
    shown: list[int] = []

    def show(item: int) -> str:
        shown.append(item)
        return f"<{item}>"

    assert some(list(range(100)), show, most=2) == "<0>; <1>; and 98 more"
    assert shown == [0, 1]
    assert some([1, 2], show, most=2) == "<1>; <2>"
