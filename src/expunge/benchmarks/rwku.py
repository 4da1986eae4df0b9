"""``expunge bench rwku``: forget an entity of which only the name is given, and ask for it in eleven ways.

Nothing about the target is given to a method but what the model itself writes about it. Reads the published data in
the authors' layout, or makes probes from facts (``--prepare``); without either, the embedded world is used, with small
models trained from nothing.

Source: Jin et al. 2024, RWKU: Benchmarking Real-World Knowledge Unlearning for LLMs (arXiv:2406.10890).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.rwku_cell import Cell, run_cell
from expunge.benchmarks.rwku_data import find, read_targets, write_targets
from expunge.benchmarks.rwku_probes import lessons, read_facts, targets_from, world_targets
from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput, Problem
from expunge.methods.base import nested, settle
from expunge.methods.run import METHODS
from expunge.reports.leaderboard import CellValue, Column, over_seeds, page, render_table, to_csv, to_markdown
from expunge.requests.request import example_id
from expunge.runs.engine import run_in_order
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe
from expunge.runs.workers import Training, run_trainings

RELATIONS = ("birth_city", "profession", "employer", "favourite_dish", "instrument", "mentor")
SHAPE = {"hidden": 128, "layers": 3, "heads": 4, "context": 256}
VOCABULARY = 1280
SCRATCH = {
    "epochs": 24, "batch_size": 32, "learning_rate": 3e-3, "weight_decay": 0.0, "warmup": 0.1, "schedule": "cosine",
}  # fmt: skip
# For models trained here; a published checkpoint keeps each method's own defaults.
SMALL = {"learning_rate": 3e-4, "epochs": 60, "max_steps": 60, "warmup": 0.0, "schedule": "constant", "batch_size": 8}
LEVEL = {"every": 2, "forget_target": 3.0, "keep": "closest"}
ROLES: Mapping[str, tuple[Literal["forget", "retain"], ...]] = {
    "original": ("forget", "retain"),
    "retrain": ("retain",),
}
COLUMNS = (
    Column("method", "Method"),
    Column("fb", "Cloze", digits=1),
    Column("qa", "Question", digits=1),
    Column("aa", "Adversarial", digits=1),
    Column("all", "All forget", digits=1),
    Column("neighbour", "Neighbours", "high", digits=1),
    Column("fm_loss", "NLL, texts on the target", digits=2),
    Column("rm_loss", "NLL, other texts", digits=2),
    Column("general", "Multiple choice", "high"),
    Column("factual", "Facts, F1", "high"),
    Column("fluency", "Fluency, bits", "high", digits=2),
    Column("empty", "Empty answers", digits=2),
)


class RwkuOptions(BenchOptions):
    """Options of ``expunge bench rwku``."""

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder of targets in the authors' layout; $EXPUNGE_DATA/rwku, or the embedded world."
    )
    prepare: Annotated[str | None, Flag(metavar="FILE")] = Field(
        None, description="Make probes from facts of your own (JSON lines) and leave; needs --data for where to."
    )
    world: int = Field(0, ge=0, description="Seed of the embedded world and of the models trained on it.")
    targets: PositiveInt = Field(4, description="So many targets, the first ones.")
    methods: tuple[str, ...] = Field(
        ("gradient_ascent", "npo", "idk", "dpo", "task_vector"), min_length=1, description="Methods, by commas."
    )
    model: Annotated[str | None, Flag(metavar="MODEL")] = Field(
        None, description="Model that knows the targets; needed with published data, trained here otherwise."
    )
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(Path("runs/rwku"), description="Folder for models and tables.")


@dataclass(frozen=True)
class RwkuResult:
    """The table and everything behind it.

    Attributes:
        cells: one record per method, seed and target.
        facts: settings, versions, hardware, date.
    """

    cells: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def methods(self) -> list[str]:
        """Methods in the order they were run."""
        return list(dict.fromkeys(str(c["method"]) for c in self.cells))

    def rows(self) -> list[dict[str, CellValue]]:
        """One row per method: the mean over targets, summarised over seeds."""
        rows: list[dict[str, CellValue]] = []
        for method in self.methods():
            row: dict[str, CellValue] = {"method": method}
            for column in COLUMNS[1:]:
                row[column.key] = over_seeds(self.per_seed(method, column.key))
            rows.append(row)
        return rows

    def per_seed(self, method: str, key: str) -> list[float | None]:
        """Mean of a number over targets, one per seed; None where it was not measured."""
        by: dict[int, list[float]] = {}
        for c in self.cells:
            if c["method"] == method:
                by.setdefault(int(c["seed"]), [])
                if c.get(key) is not None:
                    by[int(c["seed"])].append(float(c[key]))
        return [sum(v) / len(v) if v else None for v in by.values()]

    def attack_rows(self) -> tuple[list[dict[str, CellValue]], list[Column]]:
        """Rows per way to ask, columns per method."""
        kinds = sorted({k for c in self.cells for k in c if k.startswith("aa/")})
        columns = [Column("kind", "Asked by"), *(Column(m, m, digits=1) for m in self.methods())]
        rows: list[dict[str, CellValue]] = []
        for key in ("fb", "qa", *kinds):
            row: dict[str, CellValue] = {"kind": {"fb": "cloze", "qa": "question"}.get(key, key.removeprefix("aa/"))}
            row |= {m: over_seeds(self.per_seed(m, key)) for m in self.methods()}
            rows.append(row)
        return rows, columns

    def notes(self) -> list[str]:
        """What to know when reading the tables."""
        f = self.facts
        return [
            "ROUGE-L recall in percent, micro-averaged over the probes of a target, then over targets; mean over seeds "
            "with Student's t 95 % interval. Empty answers are left out and counted: many of them are damage.",
            "An answer that repeats a prompt which holds the truth gets no credit, unlike in the published scores. The "
            "instructions around a question are in our own words.",
            "Methods are given no text about the target but what the model wrote itself; refusals take the place of "
            "its own answers. No retain set, as in the paper.",
            f"Targets: {f['targets']}. Models: {f['models']}.",
        ]

    def sentences(self) -> list[str]:
        """Say whether asking in other ways gets more than the plain question, whichever way it came out."""
        out = []
        for method in self.methods():
            if method in ("original", "retrain"):
                continue
            pairs = list(zip(self.per_seed(method, "qa"), self.per_seed(method, "aa"), strict=True))
            gaps = over_seeds([b - a for a, b in pairs if a is not None and b is not None])
            if gaps.value is not None:
                low = "" if gaps.low is None else f" [{gaps.low:+.1f}, {gaps.high:+.1f}]"
                out.append(f"{method}: adversarial minus plain questions {gaps.value:+.1f}{low}.")
        return out

    def _tables(self) -> list[tuple[str, Sequence[Mapping[str, CellValue]], Sequence[Column], Sequence[str]]]:
        rows, columns = self.attack_rows()
        return [
            ("RWKU", self.rows(), COLUMNS, [*self.sentences(), *self.notes()]),
            ("RWKU: recall by way to ask", rows, columns, []),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"benchmark": "rwku", "cells": [dict(c) for c in self.cells], "facts": dict(self.facts)}

    def to_markdown(self) -> str:
        """The tables as Markdown; one line where nothing was run."""
        if not self.cells:
            return f"Targets: {self.facts['targets']}."
        return "\n\n".join(to_markdown(rows, columns, title, notes) for title, rows, columns, notes in self._tables())

    def to_html(self) -> str:
        """The tables as HTML fragments."""
        return "\n".join(render_table(rows, columns, title, notes) for title, rows, columns, notes in self._tables())


class Rwku(Benchmark[RwkuOptions]):
    """Methods times seeds times targets."""

    id = "rwku"
    title = "Forget an entity by its name alone: cloze, questions, nine attacks, neighbours, utility"
    paper = "Jin et al. 2024, RWKU (arXiv:2406.10890)"
    Options = RwkuOptions

    def run(self, options: RwkuOptions, progress: Progress) -> RwkuResult:
        if options.prepare is not None:
            return _prepare(options)
        given = nested(read_recipe(None, {"model": "-", "forget": "-"}, options.overrides).settings)
        where = find(options.data)
        problems: list[Problem] = []
        if where is not None and options.model is None:
            what = "is needed with data about real entities, which no small model trained here knows"
            problems.append(Problem("--model", what, "give a model that knows them"))
        settings = _settings(options.methods, given, small=options.model is None, problems=problems)
        if problems:
            raise BadInput(problems)
        models = {"original": options.model}
        if options.model is None:
            where, models = _embedded(options, progress)
        assert where is not None
        targets = read_targets(where, options.targets)
        start = str(models["original"])
        cells = [
            _cell(options, where, k, method, 0, str(path), {})
            for method, path in models.items()
            for k in range(len(targets))
        ]
        cells += [
            _cell(options, where, k, method, seed, start, settings[method])
            for method in options.methods
            for seed in options.seeds
            for k in range(len(targets))
        ]
        progress.stage(f"running {len(cells)} cells: methods times seeds times targets")
        scratch = f"Llama {SHAPE}, BPE {VOCABULARY}, from nothing on {len(RELATIONS)} facts per person, {SCRATCH}"
        result = RwkuResult(
            _run_all(cells, progress, options.jobs),
            {
                "date": now(), "versions": versions(), "hardware": hardware(), "settings": settings,
                "seeds": list(options.seeds), "targets": ", ".join(t.name for t in targets),
                "models": f"checkpoint {start}" if options.model else scratch,
            },
        )  # fmt: skip
        out = options.out
        (out / "results.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
        (out / "table.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
        (out / "table.html").write_text(page("RWKU", result.to_html()), encoding="utf-8")
        (out / "table.csv").write_text(to_csv(result.rows(), COLUMNS), encoding="utf-8")
        return result


def _prepare(options: RwkuOptions) -> RwkuResult:
    if options.data is None:
        raise BadInput(Problem("--data", "does not say where the probes go", "give a folder"))
    assert options.prepare is not None
    made = targets_from(read_facts(options.prepare))
    write_targets(Path(options.data), made)
    probes = sum(len(t.probes) for t in made)
    said = f"{len(made)} with {probes} probes written to {options.data}"
    return RwkuResult([], {"targets": said, "models": "none was run"})


def _settings(
    methods: Sequence[str], given: Mapping[str, Any], *, small: bool, problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """Give every method what it knows of the settings, and no retain set, which this protocol does not have."""
    out: dict[str, dict[str, Any]] = {}
    for method in methods:
        known = set(METHODS.get(method).Config.model_fields)
        chosen: dict[str, Any] = {"retain": "none"} if "retain" in known else {}
        if small:
            chosen |= SMALL
            # What is trained towards the forget set has no level to stop at.
            chosen |= {} if method == "task_vector" else {"stop": LEVEL}
        if small and method == "task_vector":
            chosen |= {"epochs": 10, "max_steps": 20, "strength": 2.0}
        if small and method == "idk":
            chosen.pop("stop")
        out[method] = {**chosen, **given}
        try:
            configured, _ = settle(METHODS.get(method), out[method])
        except BadInput as error:
            problems += error.problems
            continue
        if "retain" in configured.required():
            what = "needs a retain set, and here only the name of the target is given"
            problems.append(Problem(f"--methods {method}", what, "leave it out"))
    return out


def _embedded(options: RwkuOptions, progress: Progress) -> tuple[Path, dict[str, str | None]]:
    """Make the embedded world's targets and the models that know everybody and only those who stay."""
    world = FictitiousWorld(40, options.world, RELATIONS)
    split = world.split_people(options.targets, 4)
    made_of = {"shape": SHAPE, "scratch": SCRATCH, "relations": list(RELATIONS), "vocabulary": VOCABULARY}
    key = example_id({**made_of, "targets": options.targets, "world": options.world})
    folder = options.out / f"world-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    write_targets(folder / "Target", world_targets(world, split))
    taught = lessons(world, split, options.world)
    data = {role: folder / f"{role}.jsonl" for role in taught}
    for role, rows in taught.items():
        unique = dict.fromkeys(json.dumps(row, ensure_ascii=False) for row in rows)
        data[role].write_text("".join(f"{line}\n" for line in unique), encoding="utf-8")
    if not (folder / "tokenizer").is_dir():
        heard = [f"{r['prompt']} {r['answer']}" for rows in taught.values() for r in rows]
        heard += [f"{r['prompt']} {r['answer']}" for r in world.questions(split.holdout)]
        small_tokenizer(heard, VOCABULARY).save_pretrained(folder / "tokenizer")
    common: dict[str, Any] = {"data": data, "tokenizer": folder / "tokenizer", "shape": SHAPE}
    trainings = [
        Training(folder / name, name, roles=roles, settings={**SCRATCH, "seed": 10 * options.world + k}, **common)
        for k, (name, roles) in enumerate(ROLES.items(), 1)
    ]
    progress.stage("training a model that knows everybody, and one that never met the targets")
    run_trainings(trainings, progress, options.jobs)
    return folder / "Target", {t.name: str(t.folder / "model") for t in trainings}


def _cell(
    options: RwkuOptions, where: Path, target: int, method: str, seed: int, model: str, settings: Mapping[str, Any]
) -> Cell:
    key = example_id({"w": str(where), "t": target, "m": method, "s": seed, "model": model, "set": dict(settings)})
    folder = options.out / "cells" / f"{method}-{seed}-{target}-{key}"
    return Cell(folder, str(where), target, method, seed, model, settings)


def _run_all(cells: Sequence[Cell], progress: Progress, jobs: int | None) -> list[dict[str, Any]]:
    def heard(done: int, total: int, record: Mapping[str, Any]) -> None:
        progress.step(done, total, f"{record['method']} seed {record['seed']}, {record['target']}")

    return run_in_order(run_cell, [(cell,) for cell in cells], jobs=jobs, heard=heard)
