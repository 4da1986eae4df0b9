from __future__ import annotations

from pathlib import Path

import pytest

from expunge.audits.multiple_choice_items import Item, item_of, read_items
from expunge.data.fictitious import FictitiousWorld
from expunge.errors import BadInput


@pytest.mark.parametrize(
    ("row", "item"),
    [
        ({"prompt": "Q?", "options": ["a", "b"], "answer": "b"}, Item("Q?", ("a", "b"), 1)),
        ({"prompt": "Q?\nA. a", "plain_prompt": "Q?", "choices": ["a", "b"], "correct": 0}, Item("Q?", ("a", "b"), 0)),
        ({"question": "Q?", "choice0": "a", "choice1": "b", "answer": "B"}, Item("Q?", ("a", "b"), 1)),
        ({"question": "Q?", "option1": "a", "option2": "b", "answer": "elsewhere"}, Item("Q?", ("a", "b"), None)),
        ({"prompt": "Q?", "answer": "a"}, None),
        ({"prompt": "Q?", "options": ["only"]}, None),
        ({"prompt": " ", "options": ["a", "b"]}, None),
    ],
)
def test_rows_of_many_kinds(row: dict, item: Item | None) -> None:
    assert item_of(row) == item


def test_the_embedded_world_has_items() -> None:
    row = FictitiousWorld(8).multiple_choice()[3]
    item = item_of(row)
    assert item is not None
    assert item.question == row["plain_prompt"]
    assert item.options[item.correct or 0] == row["value"]


def test_files_with_and_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,choice0,choice1,choice2,choice3,answer\n"two\nlines",a,b,c,d,3\n')
    (tmp_path / "b.csv").write_text("Q?,a,b,c,d,D\n")
    assert read_items(tmp_path / "a.csv") == [Item("two\nlines", ("a", "b", "c", "d"), 3)]
    assert read_items(tmp_path / "b.csv") == [Item("Q?", ("a", "b", "c", "d"), 3)]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("Q?,a,b,c,d,E\nQ?,a\nQ?,a,b,c,d,A\n")
    with pytest.raises(BadInput) as error:
        read_items(tmp_path / "bad.csv")
    assert [p.where.rpartition(", ")[2] for p in error.value.problems] == ["row 1", "row 2"]
    (tmp_path / "empty.csv").write_text("")
    for name in ("empty.csv", "absent.csv"):
        with pytest.raises(BadInput):
            read_items(tmp_path / name)


@pytest.mark.real_data
def test_the_published_files(real_data: Path) -> None:
    found = [item for file in sorted((real_data / "mmlu" / "test").glob("*.csv")) for item in read_items(file)]
    assert len(found) > 10_000
    assert all(len(item.options) == 4 for item in found)
