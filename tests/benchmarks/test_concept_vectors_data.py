from __future__ import annotations

from pathlib import Path

import pytest

from expunge.benchmarks.concept_vectors_data import book_sets, chunks, raw_examples, world_sets
from expunge.errors import BadInput


def test_an_article_is_cut_where_sentences_end() -> None:
    article = "One two three. Four five six! Seven.\n\nA paragraph of its own.\nOne two three. Four five six! Seven."
    assert chunks(article, size=20) == ["One two three. Four five six!", "Seven.", "A paragraph of its own."]
    assert chunks("No end", size=3) == ["No end"]
    assert chunks("\n\n") == []


def test_running_text_has_no_prompts() -> None:
    examples = raw_examples(["a b", "c d"])
    assert [(row["prompt"], row["answer"]) for row in examples] == [("", "a b"), ("", "c d")]
    assert len(set(examples["id"])) == 2


def test_the_first_people_of_the_world_are_the_concepts() -> None:
    sets = world_sets(3, seed=0)
    assert len(sets) > 12
    assert all(len(rows) == len(sets[0][1]) for _, rows in sets)
    assert {key for _, rows in sets for row in rows for key in row} == {"prompt", "answer"}


def test_a_short_book_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Short.txt").write_text("It rained all day and nobody went out to see the sea. " * 3, encoding="utf-8")
    with pytest.raises(BadInput, match=r"Short: has \d+ passages and at least 20 are needed"):
        book_sets([tmp_path / "Short.txt"], 50)


def test_books_are_asked_for_second_halves(real_data: Path) -> None:
    files = sorted((real_data / "gutenberg").glob("*.txt"))[:2]
    sets = book_sets(files, 25)
    assert len(sets) == 2
    for _, rows in sets:
        assert len(rows) == 25
        assert all(5 < len(row["prompt"].split()) < 40 and row["answer"].strip() for row in rows)
