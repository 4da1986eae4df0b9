"""``expunge bench muse``: six criteria, from verbatim memory to sequential requests.

Reads the published data, or books that ``--prepare`` makes into the same files. Without checkpoints, small models are
trained from nothing on the texts and on the questions about them: the original on all but the holdout texts, the
oracles without what is to be forgotten. Methods are given texts only, never questions.

Source: Shi et al. 2024, MUSE: Machine Unlearning Six-Way Evaluation for Language Models (arXiv:2407.06460).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.method_settings import method_settings
from expunge.benchmarks.muse_cell import STRENGTHS, Cell, Checkpoint, run_cell
from expunge.benchmarks.muse_data import Corpus, find, load_corpus
from expunge.benchmarks.muse_prepare import prepare
from expunge.benchmarks.muse_result import COLUMNS, MuseResult
from expunge.benchmarks.muse_scores import question_prompt
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput, Problem
from expunge.methods.base import nested
from expunge.reports.leaderboard import page, to_csv
from expunge.requests.request import example_id
from expunge.runs.engine import run_in_order
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe
from expunge.runs.workers import Training, run_trainings

METHODS_TRIED = ("retrain", "gradient_ascent", "grad_diff", "npo", "task_vector")
SHAPE = {"hidden": 128, "layers": 3, "heads": 4, "context": 256}
VOCABULARY = 1536
SCRATCH = {
    "epochs": 40, "batch_size": 16, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine",
}  # fmt: skip
# For models trained here; a published checkpoint keeps each method's own defaults.
SMALL = {"learning_rate": 3e-4, "epochs": 60, "max_steps": 60, "warmup": 0.0, "schedule": "constant", "batch_size": 16}
SMALL_OWN: dict[str, dict[str, Any]] = {
    "task_vector": {"epochs": 10, "max_steps": 20, "strengths": STRENGTHS, "retain_rise": 20.0},
}


class MuseOptions(BenchOptions):
    """Options of ``expunge bench muse``."""

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder in MUSE's layout; $EXPUNGE_DATA/muse/<corpus> or the hub if left out."
    )
    corpus: Literal["news", "books"] = Field("news", description="Published corpus: news or books.")
    prepare: Annotated[tuple[str, ...], Flag(metavar="BOOK", whole=True)] = Field(
        (), description="Make the corpus from plain-text books, the first to be forgotten; repeatable."
    )
    passages: PositiveInt = Field(64, description="Passages to be forgotten, with --prepare.")
    words: int = Field(45, ge=20, le=120, description="Words of a passage, with --prepare.")
    methods: tuple[str, ...] = Field(METHODS_TRIED, min_length=1, description="Methods; retrain is a second oracle.")
    model: Annotated[str | None, Flag(metavar="MODEL")] = Field(
        None, description="Model trained on everything; trained here if left out."
    )
    oracle: Annotated[str | None, Flag(metavar="MODEL")] = Field(
        None, description="Model trained without the forget set; needed with --model."
    )
    checkpoint: Literal["knowmem", "loss"] = Field(
        "knowmem", description="Which checkpoint counts: KnowMem at the oracle's (the paper's rule), or equal loss."
    )
    epochs: PositiveInt = Field(8, description="Epochs of a method at most, for the rule knowmem.")
    folds: bool = Field(True, description="Run criteria 5 (scalability) and 6 (sustainability).")
    audited: int = Field(100, ge=4, description="Prompts, questions and texts of each kind at most.")
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(Path("runs/muse"), description="Folder for models and tables.")


class Muse(Benchmark[MuseOptions]):
    """Methods times seeds through the six criteria."""

    id = "muse"
    title = "Six criteria of unlearning texts: memory, knowledge, privacy, utility, scale, sequence"
    paper = "Shi et al. 2024, MUSE (arXiv:2407.06460)"
    Options = MuseOptions

    def run(self, options: MuseOptions, progress: Progress) -> MuseResult:
        out = options.out
        given = nested(read_recipe(None, {"model": "-", "forget": "-"}, options.overrides).settings)
        problems: list[Problem] = []
        if (options.model is None) != (options.oracle is None):
            problems.append(
                Problem("--model and --oracle", "are not both given", "give both, or neither to train small ones here")
            )
        if options.model is not None and "retrain" in options.methods:
            what = "retrain means training a checkpoint's like"
            problems.append(Problem("--methods", what, "leave it out with --model"))
        if options.prepare and options.data:
            problems.append(Problem("--data", "is given beside --prepare", "give one of them"))
        settings = method_settings(
            options.methods, given, {} if options.model is not None else SMALL, SMALL_OWN, 2, problems
        )
        if problems:
            raise BadInput(problems)
        where, about = _corpus(options, progress)
        corpus = load_corpus(where)
        if options.model is None:
            model, oracles = _train(out, where, corpus, "retrain" in options.methods, progress, options.jobs)
        else:
            assert options.oracle is not None
            model, oracles = options.model, [options.oracle]
        cells = _cells(options, where, model, oracles, settings)
        progress.stage(f"running {len(cells)} cells: methods times seeds")
        records = _run_all(cells, progress, options.jobs)
        scratch = f"Llama {SHAPE}, BPE {VOCABULARY}, from nothing on texts and questions, {SCRATCH}"
        result = MuseResult(
            records,
            {
                "date": now(), "versions": versions(), "hardware": hardware(),
                "corpus": about, "settings": settings, "seeds": list(options.seeds), "checkpoint": options.checkpoint,
                "epochs": options.epochs, "audited": options.audited,
                "models": f"checkpoints {model} and {oracles[0]}" if options.model else scratch,
            },
        )  # fmt: skip
        (out / "results.json").write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
        (out / "table.md").write_text(result.to_markdown() + "\n", encoding="utf-8")
        (out / "table.html").write_text(page("MUSE", result.to_html()), encoding="utf-8")
        (out / "table.csv").write_text(to_csv(result.rows(), COLUMNS), encoding="utf-8")
        return result


def _corpus(options: MuseOptions, progress: Progress) -> tuple[str, str]:
    if not options.prepare:
        where = find(options.data, options.corpus)
        progress.stage(f"reading MUSE from {where}")
        name = where if where.startswith("muse-bench/") else "files in MUSE's layout"
        return where, name
    progress.stage("making MUSE's files out of books")
    key = example_id({"books": list(options.prepare), "passages": options.passages, "words": options.words})
    folder = options.out / f"books-{key}"
    made = prepare([Path(book) for book in options.prepare], folder, size=options.passages, words=options.words)
    kept = " and ".join(made["made_from"][1:]) or made["made_from"][0]
    questions = made["questions"]
    return str(folder), (
        f"{options.passages} passages of {made['made_from'][0]} to forget and as many held out, "
        f"{2 * options.passages} of {kept} kept; {questions['forget']} and {questions['retain']} questions"
    )


def _train(
    out: Path, where: str, corpus: Corpus, twice: bool, progress: Progress, jobs: int | None
) -> tuple[str, list[str]]:
    """Train the model that knows everything and those that never saw the forget set; return their folders."""
    key = example_id({"where": where, "shape": SHAPE, "scratch": SCRATCH, "vocabulary": VOCABULARY})
    models = out / f"models-{key}"
    kept = [*_rows(corpus.retain1), *_rows(corpus.retain2), *_asked(corpus.retain_qa)]
    gone = [*_rows(corpus.forget), *_asked(corpus.forget_qa)]
    tokenizer = models / "tokenizer"
    if not tokenizer.is_dir():
        models.mkdir(parents=True, exist_ok=True)
        # Held-out texts are in it too: how a word is cut must not tell who was trained on.
        texts = [f"{row['prompt']}{row['answer']}" for row in [*kept, *gone, *_rows(corpus.holdout)]]
        small_tokenizer(texts, VOCABULARY).save_pretrained(tokenizer)
    data = {"forget": _lines(models / "forget.jsonl", gone), "retain": _lines(models / "retain.jsonl", kept)}
    common: dict[str, Any] = {"data": data, "tokenizer": tokenizer, "shape": SHAPE}
    trainings = [
        Training(
            models / "original", "original", roles=("forget", "retain"), settings={**SCRATCH, "seed": 1000}, **common
        )
    ]
    for k in range(2 if twice else 1):
        settings = {**SCRATCH, "seed": 2000 + k}
        trainings.append(
            Training(models / f"oracle-{k + 1}", f"oracle {k + 1}", roles=("retain",), settings=settings, **common)
        )
    progress.stage(f"training {len(trainings)} models from nothing")
    run_trainings(trainings, progress, jobs)
    folders = [str(training.folder / "model") for training in trainings]
    return folders[0], folders[1:]


def _rows(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"prompt": "", "answer": text} for text in texts]


def _asked(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": question_prompt(question), "answer": answer} for question, answer in pairs]


def _lines(file: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    unique = {json.dumps(row, ensure_ascii=False): None for row in rows}
    file.write_text("".join(f"{line}\n" for line in unique), encoding="utf-8")
    return file


def _cells(
    options: MuseOptions, where: str, model: str, oracles: Sequence[str], settings: Mapping[str, Mapping[str, Any]]
) -> list[Cell]:
    checkpoint: Checkpoint = options.checkpoint
    common: dict[str, Any] = {
        "where": where, "checkpoint": checkpoint, "epochs": options.epochs, "folds": options.folds,
        "audited": options.audited,
    }  # fmt: skip

    def cell(method: str, seed: int, start: str, oracle: str, chosen: Mapping[str, Any]) -> Cell:
        key = example_id({"m": method, "s": seed, "start": start, "oracle": oracle, "set": chosen, **common})
        folder = options.out / "cells" / f"{method}-{seed}-{key}"
        return Cell(folder, method=method, seed=seed, model=start, oracle=oracle, settings=chosen, **common)

    cells = [cell("original", 0, model, oracles[0], {})]
    for method in options.methods:
        if method == "retrain":
            cells.append(cell("retrain", 0, oracles[1], oracles[0], {}))
        else:
            cells += [cell(method, seed, model, oracles[0], settings[method]) for seed in options.seeds]
    return cells


def _run_all(cells: Sequence[Cell], progress: Progress, jobs: int | None) -> list[dict[str, Any]]:
    def heard(done: int, total: int, record: Mapping[str, Any]) -> None:
        progress.step(done, total, f"{record['method']} seed {record['seed']}")

    return run_in_order(run_cell, [(cell,) for cell in cells], jobs=jobs, heard=heard)
