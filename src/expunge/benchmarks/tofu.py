"""``expunge bench tofu``: methods times seeds on the published files, compared at matched forgetting.

Source: Maini et al. 2024, TOFU (arXiv:2401.06121). Every method keeps the checkpoint whose forget loss is closest to
one level (the oracle's, or a number that bounded objectives can reach too: ``stop.forget_target``), so that utilities
are compared between models that forgot equally much, never at a fixed step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.audits.base import Estimate
from expunge.benchmarks.tofu_cell import Cell, run_cell
from expunge.benchmarks.tofu_data import TofuSplit, find, load_split
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput, Problem
from expunge.methods.base import nested, settle
from expunge.methods.run import METHODS
from expunge.registry import near_names
from expunge.reports.leaderboard import CellValue, Column, over_seeds, render_table, to_csv, to_markdown
from expunge.requests.request import example_id
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe
from expunge.runs.workers import Training, run_trainings
from expunge.training.settings import TrainSettings

SIX = ("retrain", "finetune", "gradient_ascent", "grad_diff", "npo", "simnpo")
SHAPE = {"hidden": 128, "layers": 4, "heads": 4}
VOCABULARY = 2048
SCRATCH = {
    "epochs": 35, "batch_size": 16, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine",
}  # fmt: skip
# For models trained here; a published checkpoint keeps each method's own defaults.
SMALL = {"learning_rate": 3e-4, "epochs": 80, "max_steps": 80, "warmup": 0.0, "schedule": "constant", "batch_size": 32}
# Its force fades at a few nats per token over beta; the authors' beta for forget05, at full weight, gets far enough.
SMALL_OWN: dict[str, dict[str, Any]] = {"simnpo": {"beta": 2.5, "forget_weight": 1.0}}
COLUMNS = (
    Column("method", "Method"),
    Column("forget_nll", "Forget NLL", digits=2),
    Column("model_utility/utility", "Model utility", "high"),
    Column("forget_quality/log10_p", "Forget quality, log10 p", "high", digits=2),
    Column("probability/retain_probability", "Retain probability", "high"),
    Column("rouge/retain_rouge_recall", "Retain ROUGE-L", "high"),
    Column("rouge/forget_rouge_recall", "Forget ROUGE-L"),
    Column("extraction_strength/forget_extraction_strength", "Extraction strength"),
    Column("steps", "Steps", digits=0),
    Column("matched", "Matched"),
)


@dataclass(frozen=True)
class TofuResult:
    """The tables of a run and everything behind them.

    Attributes:
        cells: one record per method, seed and split.
        facts: recipe, versions, hardware, date, rows in use.
    """

    cells: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def splits(self) -> list[str]:
        """Splits in the order they were run."""
        return list(dict.fromkeys(str(c["split"]) for c in self.cells))

    def rows(self, split: str) -> list[dict[str, CellValue]]:
        """One row per method of a split, every number summarised over seeds."""
        rows: list[dict[str, CellValue]] = []
        cells = [c for c in self.cells if c["split"] == split]
        for method in dict.fromkeys(str(c["method"]) for c in cells):
            mine = [c for c in cells if c["method"] == method]
            row: dict[str, CellValue] = {"method": method}
            for column in COLUMNS[1:-1]:
                row[column.key] = over_seeds([c.get(column.key) for c in mine])
            row["matched"] = f"{sum(matched(c) for c in mine)} of {len(mine)}"
            rows.append(row)
        return rows

    def difference(self, split: str, a: str, b: str, key: str = "model_utility/utility") -> Estimate:
        """Paired difference a - b over seeds at which both forgot equally much, with Student's t interval."""
        found: dict[str, dict[int, float]] = {a: {}, b: {}}
        for c in self.cells:
            if c["split"] == split and c["method"] in found and c.get(key) is not None and matched(c):
                found[str(c["method"])][int(c["seed"])] = float(c[key])
        return over_seeds([found[a][s] - found[b][s] for s in sorted(set(found[a]) & set(found[b]))])

    def sentences(self, split: str) -> list[str]:
        """Say whether NPO keeps more utility than gradient ascent at equal forgetting, whichever way it came out."""
        difference = self.difference(split, "npo", "gradient_ascent")
        if difference.value is None:
            there = {c["method"] for c in self.cells if c["split"] == split}
            asked = {"npo", "gradient_ascent"} <= there
            return (
                ["NPO and gradient ascent reached equal forgetting at no common seed: not comparable."] if asked else []
            )
        low, high = difference.low, difference.high
        if low is None or high is None:
            claim = "one seed gives no interval, so nothing can be concluded"
        elif low > 0:
            claim = "NPO keeps more utility than gradient ascent at equal forgetting"
        elif high < 0:
            claim = "NPO keeps less utility than gradient ascent at equal forgetting"
        else:
            claim = "no difference in utility between NPO and gradient ascent is shown at equal forgetting"
        interval = f" [{low:+.3f}, {high:+.3f}]" if low is not None and high is not None else ""
        found = f"{difference.value:+.3f}{interval}, n = {difference.n} seeds"
        return [f"NPO minus gradient ascent, model utility: {found}: {claim}."]

    def notes(self) -> list[str]:
        """What to know when reading the tables."""
        f = self.facts
        return [
            "Mean over seeds with Student's t 95 % interval. Every method keeps the checkpoint whose forget loss is "
            f"closest to one level ({f['target']}); matched: seeds that came within 10 % of the way from the "
            "original's loss to it. Rows that are not matched must not be compared on utility.",
            f"Models: {f['models']}. Rows: {f['rows']}.",
            "Forget quality depends on the number of rows and cannot be compared across splits.",
        ]

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        parts = []
        for split in self.splits():
            notes = [*self.sentences(split), *self.notes()]
            parts.append(to_markdown(self.rows(split), COLUMNS, f"TOFU {split}", notes))
        return "\n\n".join(parts)

    def to_html(self) -> str:
        """The tables as HTML fragments."""
        return "\n".join(
            render_table(self.rows(s), COLUMNS, f"TOFU {s}", [*self.sentences(s), *self.notes()]) for s in self.splits()
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"facts": dict(self.facts), "cells": [dict(c) for c in self.cells]}


def matched(cell: Mapping[str, Any]) -> bool:
    """Whether a cell's forget loss is within a tenth of the way from the original's to the level aimed at."""
    gap = abs(cell["target_nll"] - cell["original_nll"])
    return bool(abs(cell["forget_nll"] - cell["target_nll"]) <= 0.1 * gap)


def run_tofu(
    *,
    data: str | None = None,
    splits: Sequence[str] = ("forget01",),
    methods: Sequence[str] = SIX,
    seeds: Sequence[int] = (0, 1, 2),
    model: str | None = None,
    oracles: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: str | Path = "runs/tofu",
    kept: int | None = None,
    audited: int = 100,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> TofuResult:
    """Run the protocol, or finish one that was stopped.

    Args:
        data: folder of the TOFU files; see ``tofu_data.find``.
        splits: forgetting tasks.
        methods: ids of methods; "retrain" is the oracle compared with another oracle.
        seeds: of the methods.
        model, oracles: checkpoints trained on all rows, and without each split (one per split, in order). Without them
            small models are trained from nothing, cached under ``out``.
        overrides: ``key=value`` settings of every method that knows them.
        out: folder for models, cells and tables.
        kept: use only so many of the kept rows (for small machines); None for all.
        audited: kept, author and fact rows that audits read, each.
        jobs: processes at a time; the number of usable cores by default.
        progress: hears what is being done.

    Raises:
        BadInput: unknown split, method or setting, missing files, or checkpoints for some of the splits only.
    """
    progress, out, where = progress or Progress(), Path(out), find(data)
    given = nested(read_recipe(None, {"model": "-", "forget": "-"}, overrides).settings)
    problems = [Problem("--seeds", "are missing", "give at least one")] if not seeds else []
    if (model is None and oracles) or (model is not None and len(oracles) != len(splits)):
        what = f"{len(oracles)} given for {len(splits)} split(s)"
        problems.append(Problem("--oracle", what, "give --model, and one oracle for each split"))
    if model is not None and "retrain" in methods:
        problems.append(Problem("--methods", "retrain means training a checkpoint's like", "leave it out with --model"))
    settings = _settings(methods, given, {} if model is not None else SMALL, problems)
    if problems:
        raise BadInput(problems)
    progress.stage(f"reading TOFU from {where}")
    loaded = {name: load_split(where, name, kept) for name in splits}
    if model is None:
        start, references = _train(out, loaded, sorted(set(seeds)), "retrain" in methods, kept, progress, jobs)
    else:
        start, references = model, {name: [oracle] for name, oracle in zip(splits, oracles, strict=True)}
    cells = list(_cells(out, where, loaded, kept, methods, seeds, start, references, settings, audited))
    progress.stage(f"running {len(cells)} cells: methods times seeds times splits")
    records = _run_all(cells, progress, jobs)
    originals = {r["split"]: r["forget_nll"] for r in records if r["method"] == "original"}
    result = TofuResult(
        [{**r, "original_nll": originals[r["split"]]} for r in records],
        {
            "date": now(), "versions": versions(), "hardware": hardware(), "where": "files" if data else where,
            "settings": settings, "target": _target(settings), "seeds": list(seeds), "audited": audited,
            "models": f"checkpoint {model}" if model else f"Llama {SHAPE}, BPE {VOCABULARY}, from nothing, {SCRATCH}",
            "rows": "; ".join(
                f"{n}: {len(s.train.forget)} to forget, {s.kept_rows[1]} of {s.kept_rows[0]} kept"
                for n, s in loaded.items()
            ),
        },
    )  # fmt: skip
    (out / "results.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    (out / "table.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
    (out / "table.html").write_text(_page(result.to_html()), encoding="utf-8")
    (out / "table.csv").write_text(
        "\n".join(to_csv(result.rows(split), COLUMNS) for split in result.splits()), encoding="utf-8"
    )
    return result


def _settings(
    methods: Sequence[str], given: Mapping[str, Any], base: Mapping[str, Any], problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """Give every method the settings that it knows, and check them before any work."""
    loop = set(TrainSettings.model_fields)
    own = {method: set(METHODS.get(method).Config.model_fields) for method in methods}
    known = loop.union(*own.values())
    problems += [
        Problem(f"--set {key}", "is a setting of none of the methods", near_names(key, sorted(known)))
        for key in given
        if key not in known
    ]
    settings: dict[str, dict[str, Any]] = {}
    for method in methods:
        mine = {key: value for key, value in given.items() if key in loop | own[method]}
        stop = {"every": 1, "forget_target": "oracle", "keep": "closest", **mine.pop("stop", {})}
        settings[method] = {**base, **(SMALL_OWN.get(method, {}) if base else {}), **mine, "stop": stop}
        settle(METHODS.get(method), settings[method])
    return settings


def _target(settings: Mapping[str, Mapping[str, Any]]) -> str:
    levels = sorted({str(chosen["stop"]["forget_target"]) for chosen in settings.values()})
    return ", ".join("the oracle's" if level == "oracle" else f"{level} nats per token" for level in levels)


def _page(body: str) -> str:
    style = (
        "body{font-family:system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}td,th{padding:.3rem .6rem}"
    )
    return f"<!doctype html><meta charset=utf-8><title>TOFU</title><style>{style}</style>{body}"


def _train(
    out: Path,
    splits: Mapping[str, TofuSplit],
    seeds: Sequence[int],
    retrain: bool,
    kept: int | None,
    progress: Progress,
    jobs: int | None,
) -> tuple[str, dict[str, list[str]]]:
    """Train the model that knows everything and, per split, models that never saw it; return their folders."""
    models = out / ("models" if kept is None else f"models-{kept}")
    union: dict[str, dict[str, Any]] = {}
    for split in splits.values():
        for examples in split.train.sets().values():
            union.update({row["id"]: {"prompt": row["prompt"], "answer": row["answer"]} for row in examples.to_list()})
    knowledge = [
        {"prompt": row["prompt"], "answer": row["answer"]}
        for rows in next(iter(splits.values())).knowledge.values()
        for row in rows.to_list()
    ]
    (models / "data").mkdir(parents=True, exist_ok=True)
    everything = [*union.values(), *knowledge]
    tokenizer = models / "tokenizer"
    if not tokenizer.is_dir():
        small_tokenizer([f"{r['prompt']} {r['answer']}" for r in everything], VOCABULARY).save_pretrained(tokenizer)
    common: dict[str, Any] = {"tokenizer": tokenizer, "shape": SHAPE}
    trainings: list[Training] = []
    references: dict[str, list[str]] = {}
    names = "-".join(sorted(splits))
    whole = _lines(models / "data" / f"all-{names}.jsonl", everything)
    start = models / f"original-{names}"
    trainings.append(
        Training(start, "original", {"retain": whole}, settings={**SCRATCH, "seed": 1000}, roles=("retain",), **common)
    )
    for name, split in splits.items():
        gone = set(split.train.forget["id"])
        rest = [r for i, r in union.items() if i not in gone] + knowledge
        data = {
            "forget": _lines(models / "data" / f"{name}.jsonl", split.train.forget.to_list()),
            "retain": _lines(models / "data" / f"without-{name}-{names}.jsonl", rest),
        }
        # Two at least, so that a retraining can be compared with another one.
        for seed in seeds if retrain and len(seeds) > 1 else [*seeds[:1], seeds[0] + 1][: 2 if retrain else 1]:
            folder = models / f"oracle-{name}-of-{names}-seed-{seed}"
            references.setdefault(name, []).append(str(folder / "model"))
            trainings.append(
                Training(
                    folder,
                    f"{name} oracle {seed}",
                    data,
                    settings={**SCRATCH, "seed": seed},
                    roles=("retain",),
                    **common,
                )
            )
    progress.stage(f"training {len(trainings)} models from nothing")
    run_trainings(trainings, progress, jobs)
    return str(start / "model"), references


def _lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    kept = ("prompt", "answer")
    text = "".join(json.dumps({k: row[k] for k in kept}, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return file


def _cells(
    out: Path,
    where: str,
    splits: Mapping[str, TofuSplit],
    kept: int | None,
    methods: Sequence[str],
    seeds: Sequence[int],
    start: str,
    references: Mapping[str, Sequence[str]],
    settings: Mapping[str, Mapping[str, Any]],
    audited: int,
) -> Iterator[Cell]:
    for name in splits:
        oracles = references[name]
        common: dict[str, Any] = {"where": where, "split": name, "kept": kept, "audited": audited}

        def cell(
            method: str, seed: int, model: str, oracle: str, chosen: Mapping[str, Any], common: dict[str, Any] = common
        ) -> Cell:
            key = example_id({"m": method, "s": seed, "model": model, "oracle": oracle, "set": chosen, **common})
            folder = out / "cells" / f"{common['split']}-{method}-{seed}-{key}"
            return Cell(folder, method=method, seed=seed, model=model, oracle=oracle, settings=chosen, **common)

        yield cell("original", 0, start, oracles[0], {})
        for method in methods:
            if method == "retrain":
                for k, model in enumerate(oracles):
                    yield cell("retrain", k, model, oracles[(k + 1) % len(oracles)], {})
            else:
                for seed in seeds:
                    yield cell(method, seed, start, oracles[0], settings[method])


def _run_all(cells: Sequence[Cell], progress: Progress, jobs: int | None) -> list[dict[str, Any]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    records: list[dict[str, Any]] = []
    with ProcessPoolExecutor(min(len(cells), jobs or cores), mp_context=multiprocessing.get_context("spawn")) as pool:
        for record in pool.map(run_cell, cells):
            records.append(record)
            said = f"{record['split']} {record['method']} seed {record['seed']}"
            progress.step(len(records), len(cells), said)
    return records
