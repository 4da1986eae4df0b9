"""``expunge bench concept_vectors``: what methods change in the vectors that carry a concept, and in what is said.

Reads the published layout with a model of one's own, or trains a small one from nothing (on the fictitious world, or on
books) and writes its located concepts in that layout first. Each concept is forgotten by itself, from its article, with
the article of another concept to keep; methods are compared where the article's NLL has risen equally far.

Source: Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces (arXiv:2406.11614).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.concept_vectors_cell import BEHAVIOUR, INTRINSIC, Cell, run_cell
from expunge.benchmarks.concept_vectors_data import prepare
from expunge.data.concept_vectors import read_concepts
from expunge.errors import BadInput, Problem
from expunge.methods.base import nested, settle
from expunge.methods.run import METHODS
from expunge.reports.leaderboard import CellValue, Column, over_seeds, to_csv, to_markdown
from expunge.requests.request import example_id
from expunge.runs.engine import run_in_order
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe

METHODS_TRIED = ("gradient_ascent", "grad_diff", "npo", "needle")
PUBLISHED = "conceptvectors/llama2-7b_concepts_dev.json"
# For models trained here; a model of the user's keeps each method's own defaults.
SMALL: Mapping[str, Any] = {
    "learning_rate": 1e-4, "epochs": 100, "max_steps": 100, "batch_size": 16, "warmup": 0.0, "schedule": "constant",
    "weight_decay": 0.0,
}  # fmt: skip
COLUMNS = (
    Column("method", "Method"),
    Column("jaccard", "Jaccard"),
    Column("cosine", "Cosine"),
    Column("l2", "L2 / length"),
    Column("random_jaccard", "Jaccard elsewhere"),
    Column("anew_score", "Clearest vector", digits=1),
    Column("damage_target", "Damage to the trace"),
    Column("bleu_target", "Target BLEU"),
    Column("rouge_target", "Target ROUGE-L"),
    Column("bleu_unrelated", "Unrelated BLEU", "high"),
    Column("rouge_unrelated", "Unrelated ROUGE-L", "high"),
    Column("article_nll_after", "Article NLL", digits=2),
    Column("reached", "Reached"),
)


class ConceptVectorsOptions(BenchOptions):
    """Options of ``expunge bench concept_vectors``."""

    data: Annotated[str | None, Flag(metavar="FILE")] = Field(
        None, description="Concepts in the published format, with --model; $EXPUNGE_DATA/conceptvectors if left out."
    )
    model: Annotated[str | None, Flag(metavar="MODEL")] = Field(
        None, description="Model whose vectors the file names; a small one is trained here if left out."
    )
    books: Annotated[tuple[str, ...], Flag("--book", metavar="FILE", whole=True)] = Field(
        (), description="Train the small model on these books, each a concept; repeatable."
    )
    concepts: int = Field(6, ge=2, description="Concepts at most.")
    passages: int = Field(150, ge=20, description="Passages of each book.")
    methods: tuple[str, ...] = Field(METHODS_TRIED, min_length=1, description="Methods, separated by commas.")
    rise: PositiveFloat = Field(2.0, description="How far the article's NLL is to rise, in nats per token.")
    new_tokens: PositiveInt = Field(100, description="Tokens of an answer.")
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(
        Path("runs/concept_vectors"), description="Folder for models and tables."
    )


@dataclass(frozen=True)
class ConceptVectorsResult:
    """The table and everything behind it.

    Attributes:
        cells: one record per concept, method and seed.
        facts: model, concepts, settings, versions, hardware, date.
    """

    cells: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def rows(self) -> list[dict[str, CellValue]]:
        """One row per method: the mean over concepts, summarised over seeds."""
        rows: list[dict[str, CellValue]] = []
        for method in dict.fromkeys(str(cell["method"]) for cell in self.cells):
            mine = [cell for cell in self.cells if cell["method"] == method]
            row: dict[str, CellValue] = {"method": method}
            for column in COLUMNS[1:-1]:
                row[column.key] = over_seeds([_mean(mine, column.key, seed) for seed in _seeds(mine)])
            row["reached"] = f"{sum(bool(cell['reached']) for cell in mine)} of {len(mine)}"
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"cells": [dict(cell) for cell in self.cells], "facts": dict(self.facts)}

    def to_markdown(self) -> str:
        """Return the table with what must be known to read it."""
        lacking = [cell for cell in self.cells if cell["status"] != "measured"]
        lines = [
            to_markdown(self.rows(), COLUMNS, "ConceptVectors"),
            "",
            f"Model: {self.facts['model']}; {self.facts['concepts']} concepts, each forgotten by itself; mean over "
            f"concepts, interval over seeds {self.facts['seeds']}. Every method goes on until the article's NLL has "
            f"risen by {self.facts['rise']:g} nats per token (reached: by 80 % of that). Target and unrelated: "
            "likeness to the original's own answers. Jaccard elsewhere: random vectors of the same layers.",
        ]
        lines += [f"No data: {cell['concept']}, {cell['method']}: {cell['note']}" for cell in lacking]
        return "\n".join(lines)


class ConceptVectors(Benchmark[ConceptVectorsOptions]):
    """Concepts times methods times seeds."""

    id = "concept_vectors"
    title = "What methods change in the vectors that carry a concept, beside what is said"
    paper = "Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces (arXiv:2406.11614)"
    Options = ConceptVectorsOptions

    def run(self, options: ConceptVectorsOptions, progress: Progress) -> ConceptVectorsResult:
        given = nested(read_recipe(None, {"model": "-", "forget": "-"}, options.overrides).settings)
        problems = _problems(options)
        if problems:
            raise BadInput(problems)
        settings = {}
        for method in options.methods:
            known = set(METHODS.get(method).Config.model_fields)
            base = {} if options.model or method == "needle" else dict(SMALL)
            settings[method] = {**base, **{k: v for k, v in given.items() if method != "needle" or k in known}}
            settle(METHODS.get(method), settings[method])
        if options.model is None:
            key = example_id({"books": list(options.books), "concepts": options.concepts, "passages": options.passages})
            folder = options.out / f"prepared-{key}"
            model, file, about = prepare(
                folder, progress, books=[Path(book) for book in options.books], concepts=options.concepts,
                size=options.passages, seed=options.seeds[0], workers=options.jobs,
            )  # fmt: skip
            named = f"small Llama trained from nothing on {'books' if options.books else 'the fictitious world'}"
        else:
            model, file, about, named = Path(options.model), _published(options), {}, options.model
        records = read_concepts(file)[: options.concepts]
        cells = [
            Cell(options.out / "cells" / example_id({"model": str(model), "file": str(file)}), str(model), file, number,
                 method, settings.get(method, {}), options.rise, options.new_tokens, seed)
            for method in ("original", *options.methods)
            for seed in options.seeds
            for number in range(len(records))
        ]  # fmt: skip
        progress.stage(f"running {len(cells)} cells: concepts times methods times seeds")
        found = _run_all(cells, progress, options.jobs)
        result = ConceptVectorsResult(
            found,
            {
                "date": now(), "versions": versions(), "hardware": hardware(), "model": named,
                "concepts": len(records), **about, "settings": settings, "seeds": list(options.seeds),
                "rise": options.rise,
            },
        )  # fmt: skip
        (options.out / "results.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
        (options.out / "table.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
        (options.out / "table.csv").write_text(to_csv(result.rows(), COLUMNS), encoding="utf-8")
        return result


def _problems(options: ConceptVectorsOptions) -> list[Problem]:
    problems = []
    if options.model is not None and options.books:
        problems.append(Problem("--book", "is given beside --model", "give one of them"))
    if options.data is not None and options.model is None:
        what = "names vectors of a model that is not given"
        problems.append(Problem("--data", what, "give it with --model, or leave --data out"))
    if len(options.books) == 1:
        problems.append(Problem("--book", "is given once", "give at least two books: each is a concept"))
    if options.model is not None and not _published(options).is_file():
        problems.append(
            Problem("--data", f"{_published(options)} is no file", "give a file in the ConceptVectors format")
        )
    return problems


def _published(options: ConceptVectorsOptions) -> Path:
    return Path(options.data) if options.data else Path(os.environ.get("EXPUNGE_DATA", "data")) / PUBLISHED


def _run_all(cells: Sequence[Cell], progress: Progress, jobs: int | None) -> list[dict[str, Any]]:
    heard = lambda done, total, _: progress.step(done, total, {})  # noqa: E731
    return run_in_order(run_cell, [(cell,) for cell in cells], jobs=jobs, heard=heard)


def _seeds(cells: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({int(cell["seed"]) for cell in cells})


def _mean(cells: Sequence[Mapping[str, Any]], key: str, seed: int) -> float | None:
    values = [cell[key] for cell in cells if cell["seed"] == seed and cell.get(key) is not None]
    return sum(values) / len(values) if values else None


assert {c.key for c in COLUMNS} >= {*INTRINSIC, *BEHAVIOUR}
