from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from expunge.benchmarks.muse_data import load_corpus
from expunge.benchmarks.muse_prepare import halves, make_corpus, passages, prepare, questions_of, read_book
from expunge.errors import BadInput

NAMES = ("Mirela", "Tomas", "Anton", "Greta", "Ilves", "Otto", "Vera", "Ludo", "Nina", "Emil", "Rosa", "Hugo")


def book(folder: Path, title: str, paragraphs: int, first: int = 0) -> Path:
    lines = [f"Title: {title}\n\nlicence text that is long enough to be running text.\n\n*** START OF IT ***\n"]
    for k in range(first, first + paragraphs):
        one, other = NAMES[k % 12], NAMES[(k * 5 + 1) % 12]
        lines.append(
            f"On day {k} the old {one} met a friend named {other}. They walked {k} miles together in the rain.\n"
        )
    lines.append("*** END OF IT ***\n\nmore licence text that is long enough to be running text.\n")
    file = folder / f"{title}.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_a_book_is_read_without_its_wrapping(tmp_path: Path) -> None:
    found = read_book(book(tmp_path, "Rain", 30))
    assert found.title == "Rain"
    assert len(found.paragraphs) == 30
    assert not any("licence" in p for p in found.paragraphs)
    cut = passages(found, 20)
    assert all(20 <= len(p.split()) <= 32 and p[-1] == "." for p in cut)
    (tmp_path / "latin.txt").write_bytes("Zoë went to the café in the old town again.\n".encode("latin-1"))
    assert read_book(tmp_path / "latin.txt").paragraphs[0].startswith("Zoë")


def test_questions_leave_a_name_out() -> None:
    rng = np.random.default_rng(0)
    names = Counter({"Greta": 4, "Otto": 1, "The": 50, "Monday": 9})
    text = "Yesterday the baker Greta, who was tired, slept. Otto saw on Monday that Otto was late for it all."
    assert questions_of(text, "Rain", names, rng) == [
        ("Which name is missing in this sentence from Rain? Yesterday the baker ____, who was tired, slept.", "Greta")
    ]
    assert questions_of("Short one. Nobody here has a name at all.", "Rain", names, rng) == []


def test_parts_are_disjoint_and_folds_fit(tmp_path: Path) -> None:
    files = [book(tmp_path, "Rain", 60), book(tmp_path, "Snow", 60, first=1000)]
    corpus = make_corpus([read_book(f) for f in files], size=8, words=20, seed=1)
    parts = [set(p) for p in (corpus.forget, corpus.retain1, corpus.retain2, corpus.holdout)]
    assert [len(p) for p in parts] == [8, 8, 8, 8]
    assert len(set.union(*parts)) == 32
    assert [t for part in corpus.sust for t in part] == list(corpus.forget)
    for small, large in zip(corpus.scal, corpus.scal[1:], strict=False):
        assert set(small) < set(large)
    assert set(corpus.scal[-1]) == set(corpus.forget)
    assert all(" ".join(pair) in corpus.forget for pair in corpus.verbmem)
    assert halves("a b c d") == ("a b", "c d")
    asked = " ".join(corpus.forget)
    for question, answer in corpus.forget_qa:
        assert "from Rain?" in question
        assert question.rpartition("? ")[2].replace("____", answer) in asked
    assert corpus == make_corpus([read_book(f) for f in files], size=8, words=20, seed=1)


def test_prepared_files_are_read_and_say_where_they_come_from(tmp_path: Path) -> None:
    about = prepare([book(tmp_path, "Rain", 120)], tmp_path / "out", size=8, words=20)
    corpus = load_corpus(str(tmp_path / "out"))
    assert about["made_from"] == ["Rain"]
    assert about["questions"] == {"forget": len(corpus.forget_qa), "retain": len(corpus.retain_qa)}
    assert not set(corpus.forget) & set(corpus.retain1)


def test_what_does_not_suffice_is_refused(tmp_path: Path) -> None:
    short = read_book(book(tmp_path, "Rain", 12))
    with pytest.raises(BadInput, match="needed"):
        make_corpus([short], 8, 20, 0)
    with pytest.raises(BadInput, match="at least 4"):
        make_corpus([short], 2, 20, 0)
    with pytest.raises(BadInput, match="plain-text"):
        read_book(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text("no text")
    with pytest.raises(BadInput, match="running text"):
        read_book(tmp_path / "empty.txt")


@pytest.mark.real_data
def test_the_books_at_hand_suffice(real_data: Path) -> None:
    books = [read_book(file) for file in sorted((real_data / "gutenberg").glob("*.txt"))]
    assert len({b.title for b in books}) == len(books)
    assert all(len(passages(b, 45)) > 300 for b in books)
