"""A model and its concepts for the ConceptVectors benchmark: made of the embedded world, or of books."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.audits.concepts import as_record
from expunge.audits.language.concept_vectors import ConceptVectors
from expunge.audits.observations import Observations
from expunge.benchmarks.muse_prepare import halves, passages, read_book
from expunge.data.concept_vectors import ConceptRecord, write_concepts
from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput, Problem
from expunge.requests.request import DeletionRequest, example_id
from expunge.runs.demo import SHAPE, TRAINING, write_lines
from expunge.runs.progress import Progress
from expunge.runs.workers import Training, run_trainings
from expunge.tasks.causal_lm import CausalLM

CHUNK = 400  # characters from which a piece of an article is full, as in the paper
SENTENCE = re.compile(r"(?<=[.!?])\s+")
BOOK_VOCABULARY = 4096
BOOK_SHAPE = {**SHAPE, "context": 256}
BOOK_TRAINING = {**TRAINING, "epochs": 12, "batch_size": 16, "learning_rate": 2e-3}
ASKED = 10  # questions per concept, as published
WORDS = 24  # of a passage of a book


def chunks(article: str, size: int = CHUNK) -> list[str]:
    """Cut an article into pieces: sentences of a paragraph until they have ``size`` characters; no piece twice."""
    out: list[str] = []
    for paragraph in article.split("\n"):
        current = ""
        for sentence in SENTENCE.split(paragraph.strip()):
            current = f"{current} {sentence}".strip()
            if len(current) > size:
                out.append(current)
                current = ""
        out += [current] if current else []
    return list(dict.fromkeys(out))


def raw_examples(texts: Sequence[str]) -> Dataset:
    """Return running text as examples without prompts."""
    rows = [{"prompt": "", "answer": text} for text in texts]
    return Dataset.from_list([{"id": example_id(row), **row} for row in rows])


def world_sets(concepts: int, seed: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return (name, rows) of people: the first ``concepts`` of them are the concepts, the others are background."""
    world = FictitiousWorld(people=max(48, 4 * concepts), seed=seed)
    request = world.split(forget=concepts, holdout=1)
    groups: dict[str, list[dict[str, Any]]] = {}
    for role in ("forget", "retain"):
        for row in request.sets()[role].to_list():
            kept = {key: row[key] for key in ("prompt", "answer")}
            groups.setdefault(str(row["group"]), []).append(kept)
    return list(groups.items())


def book_sets(files: Sequence[Path], size: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return (title, rows) of books; a row asks for the second half of a passage."""
    out = []
    for file in files:
        book = read_book(file)
        texts = passages(book, WORDS)[:size]
        if len(texts) < 2 * ASKED:
            what = f"has {len(texts)} passages and at least {2 * ASKED} are needed"
            raise BadInput(Problem(book.title, what, "give a longer book"))
        rows = [dict(zip(("prompt", "answer"), halves(text), strict=True)) for text in texts]
        out.append((book.title, rows))
    return out


def prepare(
    folder: Path,
    progress: Progress,
    *,
    books: Sequence[Path],
    concepts: int,
    size: int,
    seed: int,
    workers: int | None,
) -> tuple[Path, Path, dict[str, Any]]:
    """Train a model from nothing and write its located concepts in the published format.

    Args:
        folder: receives the model and ``concepts.json``; what is there is not made again.
        progress: hears of it.
        books: text files, each a concept; none for people of the fictitious world.
        concepts: how many people are concepts.
        size: passages of each book.
        seed: of the world and of the model.
        workers: processes at a time.

    Returns:
        The model, the file, and how many concepts were tried and located.

    Raises:
        BadInput: fewer than two concepts have a localised trace; the benchmark needs another one to compare with.
    """
    sets = book_sets(books, size) if books else world_sets(concepts, seed)
    rows = [{"id": example_id(row), "group": name, **row} for name, many in sets for row in many]
    folder.mkdir(parents=True, exist_ok=True)
    model, file = folder / "original", folder / "concepts.json"
    if not (folder / "tokenizer").is_dir():
        write_lines(folder / "all.jsonl", Dataset.from_list(rows))
        texts = [f"{row['prompt']} {row['answer']}" for row in rows]
        small_tokenizer(texts, BOOK_VOCABULARY if books else 1024).save_pretrained(folder / "tokenizer")
    training = Training(
        folder=model, name="the original", data={"retain": folder / "all.jsonl"}, tokenizer=folder / "tokenizer",
        shape=BOOK_SHAPE if books else SHAPE, roles=("retain",),
        settings={**(BOOK_TRAINING if books else TRAINING), "seed": 1000 + seed},
    )  # fmt: skip
    progress.stage("training a model from nothing")
    run_trainings([training], progress, workers)
    names = [name for name, _ in sets][: len(sets) if books else concepts]
    if not file.is_file():
        progress.stage("locating its concepts")
        found = _locate(CausalLM.load(model / "model"), rows, names, seed)
        if len(found) < 2:
            what = f"{len(found)} of {len(names)} concepts have a localised trace in the model that was trained"
            raise BadInput(Problem("concepts", what, "give more concepts or longer books, or another seed"))
        write_concepts(file, found)
    return model / "model", file, {"concepts tried": len(names)}


def _locate(task: CausalLM, rows: Sequence[dict[str, Any]], names: Sequence[str], seed: int) -> list[ConceptRecord]:
    out = []
    for name in names:
        mine = Dataset.from_list([row for row in rows if row["group"] == name])
        other = Dataset.from_list([row for row in rows if row["group"] != name])
        limits = {"forget": 200, "retain": 1000}
        seen = Observations(
            {"unlearned": task, "original": task}, DeletionRequest(mine, other), limits=limits, seed=seed
        )
        trace = ConceptVectors(ConceptVectors.Config(unrelated=50)).find(seen)[0]
        if not trace.why:
            # The article is what the model learnt from: questions with their answers.
            article = "\n".join(f"{row['prompt']} {row['answer']}" for row in mine.to_list()[: 4 * ASKED])
            record = as_record(trace.concept, trace.candidates)
            extra = {key: value for key, value in record.extra.items() if key != "Gold"}
            questions = record.questions[:ASKED]
            out.append(
                ConceptRecord(name, record.vectors, questions, record.unrelated[:50], article=article, extra=extra)
            )
    return out
