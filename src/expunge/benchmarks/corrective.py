"""``expunge bench corrective``: undoing corrupted training data of which only a part was identified.

A poison (a patch that stands for one label) and a label confusion (two classes swapped) are put into a training set;
each method is told of 10 % to 100 % of the corrupted examples. Whether it corrects is the accuracy on the affected
domain by clean labels, what it costs the accuracy on the rest. The gold standard is retraining without all of them.

Source: Goel et al. 2024, Corrective Machine Unlearning (arXiv:2402.14015).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from expunge.audits.base import Estimate, Plot
from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.corrective_cell import (
    CANDIDATES,
    DOMAINS,
    HIDDEN,
    ORIGINAL,
    TRAINING,
    Setting,
    make_case,
    run_setting,
)
from expunge.benchmarks.predictor_settings import check_given, known_to
from expunge.errors import BadInput, Problem
from expunge.methods.base import nested, settle
from expunge.methods.run import METHODS
from expunge.registry import near_names
from expunge.reports.leaderboard import CellValue, Column, over_seeds, page, render_table, to_markdown
from expunge.reports.plots import draw
from expunge.runs.engine import run_in_order
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe

KINDS = {"poison": "Poison", "confusion": "Label confusion"}
NUMBERS = {"acc_corr": "Acc_corr (%)", "acc_retain": "Acc_retain (%)"}


class CorrectiveOptions(BenchOptions):
    """Options of ``expunge bench corrective``."""

    images: str = Field("mnist10k", description="mnist10k, cifar10 (both need --data), or digits.")
    corruptions: tuple[str, ...] = Field(("poison", "confusion"), min_length=1, description="poison, confusion.")
    fractions: tuple[float, ...] = Field(
        (0.1, 0.25, 0.5, 0.75, 1.0), min_length=1, description="Known shares of the corrupted examples."
    )
    train: int | None = Field(None, ge=200, description="Training images at most; 4000 if left out.")
    methods: tuple[str, ...] = Field(
        ("retrain", "finetune", "scrub", "bad_teacher", "ssd"), min_length=1, description="Methods, with commas."
    )
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(
        Path("runs/corrective"), description="Folder for numbers and tables."
    )


@dataclass(frozen=True)
class CorrectiveResult:
    """The tables of a run and everything behind them.

    Attributes:
        cells: one record per corruption, seed, method and known share; the original has share 0.
        facts: images, settings, versions, hardware, date.
    """

    cells: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def rows(self, corruption: str, key: str) -> list[dict[str, CellValue]]:
        """Return one row per method with a column per known share, each a mean over seeds.

        The original is the same at every share; the gold standard, retraining without all corrupted examples, is the
        row of ``retrain`` at 100 %.
        """
        mine = [cell for cell in self.cells if cell["corruption"] == corruption]
        rows: list[dict[str, CellValue]] = []
        for method in dict.fromkeys(str(cell["method"]) for cell in mine):
            row: dict[str, CellValue] = {"method": method}
            for share in self.shares():
                at = 0.0 if method == ORIGINAL else share
                own = [cell for cell in mine if cell["method"] == method and cell["share"] == at]
                row[f"{share:g}"] = over_seeds([cell.get(key) for cell in own])
            rows.append(row)
        return rows

    def shares(self) -> list[float]:
        """Known shares, ascending."""
        return sorted({float(cell["share"]) for cell in self.cells} - {0.0})

    def plot(self, corruption: str) -> Plot:
        """Return the curve of Acc_corr over the known share, one line per method."""
        series: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows(corruption, "acc_corr"):
            points = [(100 * share, row[f"{share:g}"]) for share in self.shares()]
            series[str(row["method"])] = [
                (x, e.value) for x, e in points if isinstance(e, Estimate) and e.value is not None
            ]
        title = f"{KINDS[corruption]}: accuracy on the affected domain"
        return Plot("curve", title, "corrupted examples that are known (%)", "Acc_corr (%)", series)

    def _tables(self) -> Iterator[tuple[str, str, list[dict[str, CellValue]], list[Column]]]:
        for corruption in dict.fromkeys(str(cell["corruption"]) for cell in self.cells):
            keys = [*NUMBERS, "attack_success"] if corruption == "poison" else list(NUMBERS)
            for key in keys:
                title = f"{KINDS[corruption]}: {NUMBERS.get(key, 'triggered images that go to the target (%)')}"
                better: Any = "low" if key == "attack_success" else "high"
                columns = [Column("method", "Method")]
                columns += [Column(f"{share:g}", f"{share:.0%} known", better, 1) for share in self.shares()]
                yield corruption, title, self.rows(corruption, key), columns

    def notes(self) -> list[str]:
        """What to know when reading the tables."""
        f = self.facts
        return [
            f"Images: {f['images']}, {f['train']} for training; {f['network']}. Mean over seeds {f['seeds']} with "
            "Student's t 95 % interval.",
            "Acc_corr is measured with clean labels: on triggered test images of other classes than the target, or on "
            "test images of the two confused classes. The original has seen everything; retrain at 100 % is the gold "
            "standard.",
            "Where a method has several settings, the one is taken with the best mean of accuracy on what is not "
            "identified (as labelled) and of identified examples that no longer get the wrong label; the affected "
            "domain is not looked at.",
        ]

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        parts = [to_markdown(rows, columns, title) for _, title, rows, columns in self._tables()]
        return "\n".join(parts) + "\n" + "\n\n".join(" ".join(note.split()) for note in self.notes())

    def to_html(self) -> str:
        """The tables and curves as HTML fragments."""
        parts, drawn = [], set()
        for corruption, title, rows, columns in self._tables():
            if corruption not in drawn:
                drawn.add(corruption)
                plot = self.plot(corruption)
                parts.append(str(draw(plot, list(plot.series), corruption).svg))
            parts.append(render_table(rows, columns, title))
        return "\n".join([*parts, *(f"<p>{note}</p>" for note in self.notes())])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"facts": dict(self.facts), "cells": [dict(cell) for cell in self.cells]}


class Corrective(Benchmark[CorrectiveOptions]):
    """Corruptions times known shares times methods times seeds."""

    id = "corrective"
    title = "Undoing corrupted training data of which a part was identified"
    paper = "Goel et al. 2024, Corrective Machine Unlearning (arXiv:2402.14015)"
    Options = CorrectiveOptions

    def run(self, options: CorrectiveOptions, progress: Progress) -> CorrectiveResult:
        methods = _methods(options)
        settings = [
            Setting(options.images, options.data, corruption, seed, options.train)  # type: ignore[arg-type]
            for corruption in options.corruptions
            for seed in options.seeds
        ]
        progress.stage(f"reading {options.images}")
        case = make_case(settings[0])  # missing files are found before any work
        progress.stage(f"running {len(settings)} corrupted training sets")
        cells = _run_all(settings, sorted(options.fractions), methods, options, progress)
        result = CorrectiveResult(
            cells,
            {
                "date": now(), "versions": versions(), "hardware": hardware(), "images": options.images,
                "train": len(case.train), "network": f"MLP {HIDDEN}, {dict(TRAINING)}",
                "seeds": list(options.seeds), "candidates": {m: [dict(c) for c in cs] for m, cs in methods.items()},
            },
        )  # fmt: skip
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
        (options.out / "table.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
        (options.out / "table.html").write_text(page("Corrective unlearning", result.to_html()), encoding="utf-8")
        return result


def _methods(options: CorrectiveOptions) -> dict[str, list[dict[str, Any]]]:
    """Return each method's candidates with the settings of the command line in them.

    Raises:
        BadInput: everything that is wrong with the options, at once.
    """
    problems: list[Problem] = []
    if options.images not in DOMAINS:
        problems.append(
            Problem("--images", f"'{options.images}' is not a set", near_names(options.images, list(DOMAINS)))
        )
    for name in options.corruptions:
        if name not in KINDS:
            problems.append(Problem("--corruptions", f"'{name}' is not a corruption", near_names(name, list(KINDS))))
    for share in options.fractions:
        if not 0 < share <= 1:
            problems.append(Problem("--fractions", f"{share:g} is not a share", "give numbers above 0, up to 1"))
    names = METHODS.names()
    for name in options.methods:
        if name not in names:
            problems.append(Problem("--methods", f"'{name}' is not a method", near_names(name, names)))
        elif "image_classifier" not in METHODS.get(name).tasks:
            serves = ", ".join(METHODS.get(name).tasks)
            problems.append(Problem("--methods", f"'{name}' does not serve image classifiers", f"it serves {serves}"))
    if problems:
        raise BadInput(problems)
    given = nested(read_recipe(None, {"model": "-", "forget": "-"}, options.overrides).settings)
    check_given(options.methods, given)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.methods:
        mine = known_to(name, given)
        # A setting that is given leaves no choice of it: candidates that then are equal are one.
        merged = [{**candidate, **mine} for candidate in CANDIDATES.get(name, [{}])]
        found[name] = [candidate for k, candidate in enumerate(merged) if candidate not in merged[:k]]
        for candidate in found[name]:
            settle(METHODS.get(name), candidate)
    return found


def _run_all(
    settings: Sequence[Setting],
    fractions: Sequence[float],
    methods: Mapping[str, Sequence[Mapping[str, Any]]],
    options: CorrectiveOptions,
    progress: Progress,
) -> list[dict[str, Any]]:
    def heard(done: int, total: int, records: Sequence[Mapping[str, Any]]) -> None:
        progress.step(done, total, f"{records[0]['corruption']}, seed {records[0]['seed']}")

    arguments = [(setting, fractions, methods, options.out / "cells") for setting in settings]
    return list(chain(*run_in_order(run_setting, arguments, jobs=options.jobs, heard=heard)))
