"""``expunge bench tofu``: methods times seeds on the published files, compared at matched forgetting.

Source: Maini et al. 2024, TOFU (arXiv:2401.06121). Every method keeps the checkpoint whose forget loss is closest to
one level (the oracle's, or a number that bounded objectives can reach too: ``stop.forget_target``), so that utilities
are compared between models that forgot equally much, never at a fixed step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.method_settings import method_settings
from expunge.benchmarks.tofu_cell import Cell, run_cell
from expunge.benchmarks.tofu_data import TofuSplit, check_split, find, load_split
from expunge.benchmarks.tofu_result import COLUMNS, TofuResult
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput, Problem, collected, tried
from expunge.methods.base import nested
from expunge.reports.leaderboard import page, to_csv
from expunge.requests.request import example_id
from expunge.runs.engine import run_in_order
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe
from expunge.runs.workers import Training, run_trainings

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


class TofuOptions(BenchOptions):
    """Options of ``expunge bench tofu``."""

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder of the TOFU files; $EXPUNGE_DATA/tofu or the hub if left out."
    )
    split: tuple[str, ...] = Field(
        ("forget01",), min_length=1, description="forget01, forget05 or forget10; repeatable."
    )
    methods: tuple[str, ...] = Field(SIX, min_length=1, description="Methods; retrain compares oracles.")
    model: Annotated[str | None, Flag(metavar="MODEL")] = Field(
        None, description="Model trained on all of TOFU; trained here if left out."
    )
    oracle: Annotated[tuple[str, ...], Flag(metavar="MODEL", whole=True)] = Field(
        (), description="Model trained without the split; repeatable, one per split in their order."
    )
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(Path("runs/tofu"), description="Folder for models and tables.")
    kept: PositiveInt | None = Field(None, description="Use only so many of the kept rows; all if left out.")
    audited: int = Field(100, ge=8, description="Kept, author and fact rows that audits read, each.")


class Tofu(Benchmark[TofuOptions]):
    """Methods times seeds on the published files; without checkpoints, on small models trained from nothing."""

    id = "tofu"
    title = "Forgetting fictitious authors, methods compared at matched forgetting"
    paper = "Maini et al. 2024, TOFU (arXiv:2401.06121)"
    Options = TofuOptions

    def run(self, options: TofuOptions, progress: Progress) -> TofuResult:
        out, model, kept = options.out, options.model, options.kept
        splits, methods, seeds, oracles = options.split, options.methods, options.seeds, options.oracle
        given = nested(read_recipe(None, {"model": "-", "forget": "-"}, options.overrides).settings)
        problems: list[Problem] = []
        where = tried(problems, "--data", lambda: find(options.data))
        for name in splits:
            with collected(problems):
                check_split(name)
        if (model is None and oracles) or (model is not None and len(oracles) != len(splits)):
            what = f"{len(oracles)} given for {len(splits)} split(s)"
            problems.append(Problem("--oracle", what, "give --model, and one oracle for each split"))
        if model is not None and "retrain" in methods:
            problems.append(
                Problem("--methods", "retrain means training a checkpoint's like", "leave it out with --model")
            )
        settings = method_settings(methods, given, {} if model is not None else SMALL, SMALL_OWN, 1, problems)
        if problems or where is None:
            raise BadInput(list(dict.fromkeys(problems)))
        progress.stage(f"reading TOFU from {where}")
        loaded = {name: load_split(where, name, kept) for name in splits}
        if model is None:
            start, references = _train(
                out, loaded, sorted(set(seeds)), "retrain" in methods, kept, progress, options.jobs
            )
        else:
            start, references = model, {name: [oracle] for name, oracle in zip(splits, oracles, strict=True)}
        cells = list(_cells(out, where, loaded, kept, methods, seeds, start, references, settings, options.audited))
        progress.stage(f"running {len(cells)} cells: methods times seeds times splits")
        records = _run_all(cells, progress, options.jobs)
        originals = {r["split"]: r["forget_nll"] for r in records if r["method"] == "original"}
        scratch = f"Llama {SHAPE}, BPE {VOCABULARY}, from nothing, {SCRATCH}"
        result = TofuResult(
            [{**r, "original_nll": originals[r["split"]]} for r in records],
            {
                "date": now(), "versions": versions(), "hardware": hardware(),
                "where": "files" if options.data else where,
                "settings": settings, "target": _target(settings), "seeds": list(seeds), "audited": options.audited,
                "models": f"checkpoint {model}" if model else scratch,
                "rows": "; ".join(
                    f"{n}: {len(s.train.forget)} to forget, {s.kept_rows[1]} of {s.kept_rows[0]} kept"
                    for n, s in loaded.items()
                ),
            },
        )  # fmt: skip
        _write(result, out)
        return result


def _target(settings: Mapping[str, Mapping[str, Any]]) -> str:
    levels = sorted({str(chosen["stop"]["forget_target"]) for chosen in settings.values()})
    return ", ".join("the oracle's" if level == "oracle" else f"{level} nats per token" for level in levels)


def _write(result: TofuResult, out: Path) -> None:
    (out / "results.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    (out / "table.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
    (out / "table.html").write_text(page("TOFU", result.to_html()), encoding="utf-8")
    tables = [to_csv(result.rows(split), COLUMNS) for split in result.splits()]
    (out / "table.csv").write_text("\n".join(tables), encoding="utf-8")


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
    def heard(done: int, total: int, record: Mapping[str, Any]) -> None:
        progress.step(done, total, f"{record['split']} {record['method']} seed {record['seed']}")

    return run_in_order(run_cell, [(cell,) for cell in cells], jobs=jobs, heard=heard)
