"""MUSE out of books in the public domain: the same files, made from plain text without a language model.

Passages of the first book are dealt by lot to what is to be forgotten and to what no model sees, so that both are alike
in every way but membership. What is kept comes from the other books, or from the first where there is no other.

Questions are made by leaving a name out: a sentence of a passage with a capitalised word that does not begin it and
that the book uses several times becomes "Which name is missing in this sentence from <book>? ...", with the name as the
answer. No model writes or checks them; what they can show is whether the sentence was learnt as something that a
question calls up, not knowledge of the world.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.benchmarks.muse_data import FOLDS, Corpus, write_corpus
from expunge.errors import BadInput, Problem

START, END = re.compile(r"^\*\*\* ?START.*$", re.MULTILINE), re.compile(r"^\*\*\* ?END.*$", re.MULTILINE)
TITLE = re.compile(r"^Title: *(.+)$", re.MULTILINE)
SENTENCE = re.compile(r"(?<=[.!?])[\"'”’]?\s+")
NAME = re.compile(r"[A-Z][a-z]{2,}")
# Capitalised in the middle of a sentence without being a name.
COMMON = frozenset((
    "And", "But", "The", "That", "This", "There", "They", "Then", "Than", "What", "When", "Where", "Who", "Why",
    "How", "Yes", "You", "Your", "She", "Her", "His", "Him", "Mrs", "Miss", "Sir", "Lord", "Lady", "Madam", "God",
    "Heaven", "Chapter", "English", "French", "Latin", "German", "Monday", "Tuesday", "Wednesday", "Thursday",
    "Friday", "Saturday", "Sunday", "January", "February", "March", "April", "May", "June", "July", "August",
    "September", "October", "November", "December", "Not", "Now", "Ah", "For", "Oh",
))  # fmt: skip


@dataclass(frozen=True)
class Book:
    """A book: its title and its paragraphs."""

    title: str
    paragraphs: tuple[str, ...]


def read_book(file: Path) -> Book:
    """Read a plain-text book; what Project Gutenberg puts around it is cut off.

    Raises:
        BadInput: no such file, or no text in it.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BadInput(Problem(str(file), f"cannot be read: {error.strerror}", "give a plain-text book")) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    text = text.replace("\r\n", "\n")
    named = TITLE.search(text)
    begin, end = START.search(text), END.search(text)
    body = text[begin.end() if begin else 0 : end.start() if end else len(text)]
    found = (" ".join(part.split()) for part in re.split(r"\n\s*\n", body))
    # Headings, lists and verse are no running text.
    kept = tuple(p for p in found if len(p.split()) >= 8 and any(c in p for c in ".!?") and not p.isupper())
    if not kept:
        raise BadInput(Problem(str(file), "holds no paragraph of running text", "give a plain-text book"))
    title = named.group(1).strip() if named else file.name.partition(".")[0].replace("_", " ").title()
    return Book(title.partition(",")[0].strip(), kept)


def passages(book: Book, words: int) -> list[str]:
    """Cut a book into passages of about ``words`` words that end with a sentence."""
    out: list[str] = []
    current: list[str] = []
    for paragraph in book.paragraphs:
        for sentence in SENTENCE.split(paragraph):
            current += sentence.split()
            if len(current) >= words:
                # A sentence much longer than a passage would not fit a small context.
                if len(current) <= 1.6 * words:
                    out.append(" ".join(current))
                current = []
    return out


def questions_of(passage: str, book: str, names: Counter[str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return up to two (question, answer) pairs about a passage, each of another sentence.

    Args:
        passage: any text.
        book: title that the question names.
        names: how often the book uses each name; one that is a tenth of all could be guessed and is not asked for.
        rng: draws among the possible questions.
    """
    most = max(3, names.total() // 10)
    possible: dict[str, tuple[str, str]] = {}
    for sentence in SENTENCE.split(passage):
        words = sentence.split()
        if not 5 <= len(words) <= 30:
            continue
        found = []
        for k, word in enumerate(words[1:], 1):
            match = NAME.fullmatch(word.strip(",.;:!?\"'()“”‘’_-"))
            inside = words[k - 1][-1] not in '.!?:"“'
            if match and inside and 2 <= names[match.group()] <= most and match.group() not in COMMON:
                gap = word.replace(match.group(), "____", 1)
                found.append((" ".join([*words[:k], gap, *words[k + 1 :]]), match.group()))
        if found:
            possible[sentence] = found[int(rng.integers(len(found)))]
    drawn = [list(possible.values())[k] for k in rng.permutation(len(possible))[:2]]
    return [(f"Which name is missing in this sentence from {book}? {sentence}", name) for sentence, name in drawn]


def make_corpus(books: Sequence[Book], size: int, words: int, seed: int) -> Corpus:
    """Deal passages and make questions.

    Args:
        books: the first is to be forgotten.
        size: passages to be forgotten; as many are held out, and as many go to each of the two kept sets.
        words: of a passage, about.
        seed: of every draw.

    Raises:
        BadInput: too few passages, or too few of them can be asked about.
    """
    rng = np.random.default_rng(seed)
    own = passages(books[0], words)
    others = [(book, text) for book in books[1:] for text in passages(book, words)]
    needed = 2 * size if others else 4 * size
    problems = []
    if size < FOLDS:
        problems.append(Problem("--passages", f"is {size}", f"give at least {FOLDS}"))
    if len(own) < needed:
        what = f"has {len(own)} passages of {words} words and {needed} are needed"
        problems.append(Problem(books[0].title, what, "give fewer --passages, or a longer book first"))
    if others and len(others) < 2 * size:
        problems.append(
            Problem("books to keep", f"have {len(others)} passages and {2 * size} are needed", "give another book")
        )
    if problems:
        raise BadInput(problems)
    drawn = [own[k] for k in rng.permutation(len(own))[:needed]]
    forget, holdout = drawn[:size], drawn[size : 2 * size]
    if others:
        chosen = [others[k] for k in rng.permutation(len(others))[: 2 * size]]
    else:
        chosen = [(books[0], text) for text in drawn[2 * size :]]
    counts = {book.title: _names(book) for book in books}
    forget_qa = _questions([(books[0], text) for text in forget], counts, rng)
    retain_qa = _questions(chosen[size:], counts, rng)
    if min(len(forget_qa), len(retain_qa)) < 4:
        what = f"give {len(forget_qa)} and {len(retain_qa)} questions about what is to be forgotten and kept"
        raise BadInput(Problem("books", what, "give more --passages or books with names in them"))
    quarters = [list(part) for part in np.array_split(np.array(forget, dtype=object), FOLDS)]
    return Corpus(
        forget=forget,
        retain1=[text for _, text in chosen[:size]],
        retain2=[text for _, text in chosen[size:]],
        holdout=holdout,
        verbmem=[halves(text) for text in forget],
        forget_qa=forget_qa,
        retain_qa=retain_qa,
        private=(forget, holdout),
        scal=[[text for part in quarters[: k + 1] for text in part] for k in range(FOLDS)],
        sust=quarters,
    )


def halves(text: str) -> tuple[str, str]:
    """Return the first half of a text's words and the second."""
    words = text.split()
    cut = len(words) // 2
    return " ".join(words[:cut]), " ".join(words[cut:])


def _names(book: Book) -> Counter[str]:
    return Counter(m for paragraph in book.paragraphs for m in NAME.findall(paragraph) if m not in COMMON)


def _questions(
    texts: Sequence[tuple[Book, str]], counts: dict[str, Counter[str]], rng: np.random.Generator
) -> list[tuple[str, str]]:
    found = (questions_of(text, book.title, counts[book.title], rng) for book, text in texts)
    return list(dict(pair for pairs in found for pair in pairs).items())


def prepare(files: Sequence[Path], folder: Path, *, size: int = 64, words: int = 45, seed: int = 0) -> dict[str, Any]:
    """Make a corpus from books and write it, unless the very same one is there.

    Args:
        files: plain-text books; the first is to be forgotten.
        folder: where the corpus goes.
        size, words, seed: see ``make_corpus``.

    Returns:
        What the corpus was made from.

    Raises:
        BadInput: a book cannot be read, or does not suffice.
    """
    books = [read_book(file) for file in files]
    corpus = make_corpus(books, size, words, seed)
    about = {
        "made_from": [book.title for book in books],
        "files": [file.name for file in files],
        "passages": size,
        "words": words,
        "seed": seed,
        "questions": {"forget": len(corpus.forget_qa), "retain": len(corpus.retain_qa)},
    }
    write_corpus(corpus, folder, about)
    return about
