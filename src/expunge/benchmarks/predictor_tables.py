"""From options to the records of a table: train, try settings, run every method, all of it resumable.

Per seed there is one original; per seed and scenario two models retrained from different seeds: the one that methods
are compared with, and another whose distance to it is what seeds alone make. Settings are chosen on a seed of their
own, with models of its own, among as many trials for every method, by the distance to its retrained model. That is the
field's way to tune, and it looks at a retrained model that a user would not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.benchmarks.predictor_cell import Cell, ModelJob, Place, run_cell, train_model
from expunge.benchmarks.predictor_data import known_data
from expunge.benchmarks.predictor_settings import check_given, serving, trials
from expunge.errors import BadInput, Problem
from expunge.requests.request import example_id
from expunge.runs.engine import run_in_order
from expunge.runs.progress import Progress

TUNING_SEED = 1000
# Weights of the original and of the two retrained models of a seed never come from the same seed.
ORIGINAL, ORACLE, OTHER = 10_000, 20_000, 30_000

Record = dict[str, Any]
# How far a record is from that of the retrained model; smaller is better.
Distance = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


@dataclass(frozen=True)
class Plan:
    """What is to be run on one data set.

    Attributes:
        dataset, where, size: see ``Place``.
        scenarios: names.
        methods: names; all that serve the kind of model if empty.
        seeds: of the table.
        count: trials per method; 1 takes the first and tunes nothing.
        given: settings from the command line, nested.
        out: folder of models and cells.
        jobs: processes at a time.
    """

    dataset: str
    where: str | None
    size: int | None
    scenarios: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    count: int
    given: Mapping[str, Any]
    out: Path
    jobs: int | None

    def place(self, scenario: str, seed: int) -> Place:
        """Return a scenario with a seed."""
        return Place(self.dataset, self.where, self.size, scenario, seed)

    def model(self, kind: str, scenario: str, seed: int) -> Path:
        """Return the run folder of a model; the original does not depend on the scenario."""
        size = "" if self.size is None else f"-{self.size}"
        return self.out / "models" / f"{self.dataset}{size}" / "-".join(filter(None, (kind, scenario, str(seed))))


@dataclass(frozen=True)
class Found:
    """What a plan gave.

    Attributes:
        records: of the table's cells; "retrain" is what methods are compared with, "retrain, other seed" the other one.
        tried: of the trials.
        settings: scenario -> method -> the settings chosen.
        left_out: scenario -> method -> why it was not run.
        retraining: scenario -> seed -> CPU seconds of retraining.
    """

    records: list[Record]
    tried: list[Record]
    settings: dict[str, dict[str, dict[str, Any]]]
    left_out: dict[str, dict[str, str]]
    retraining: dict[str, dict[int, float]]


def check_plan(plan: Plan) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Return the methods of every scenario, and why others are not run.

    Raises:
        BadInput: unknown methods, settings or scenarios, methods that serve nothing of this, missing files.
    """
    kind, problems = known_data(plan.dataset).kind, []
    if TUNING_SEED in plan.seeds:
        problems.append(Problem("--seeds", f"{TUNING_SEED} is the seed that settings are tried on", "give another one"))
    chosen: dict[str, list[str]] = {}
    left_out: dict[str, dict[str, str]] = {}
    for scenario in plan.scenarios:
        request = plan.place(scenario, plan.seeds[0]).request()[0]
        able, others = serving(kind, request.scenario)
        serves_kind = set(able) | {m for m, why in others.items() if "scenario" in why}
        wanted = list(dict.fromkeys(plan.methods)) or sorted(serves_kind)
        chosen[scenario] = [m for m in wanted if m in able]
        left_out[scenario] = {m: others[m] for m in wanted if m in others}
    for method in dict.fromkeys(plan.methods):
        if method == "retrain":
            problems.append(Problem("--methods", "retrain is always there to compare with", "leave it out"))
        elif all(method in reasons for reasons in left_out.values()):
            why = next(iter(left_out.values()))[method]
            problems.append(Problem(f"method {method}", f"{why}, nothing of what is asked", "leave it out"))
        else:
            trials(method, plan.count, plan.given)
    if problems:
        raise BadInput(problems)
    check_given(sorted({m for methods in chosen.values() for m in methods}), plan.given)
    return chosen, left_out


def run_plan(
    plan: Plan, distance: Distance, progress: Progress, fixed: Mapping[str, dict[str, Any]] | None = None
) -> Found:
    """Train, try, run; what is finished is only read.

    Args:
        plan: what to run.
        distance: by which settings are chosen.
        progress: hears what is being done.
        fixed: settings by method, where they were chosen elsewhere; nothing is tried then.

    Raises:
        BadInput: see ``check_plan``.
    """
    methods, left_out = check_plan(plan)
    tuned = plan.count > 1 and fixed is None
    seconds = _train(plan, tuned, progress)
    settings: dict[str, dict[str, dict[str, Any]]] = {}
    tried: list[Record] = []
    if tuned:
        cells = list(_trial_cells(plan, methods))
        progress.stage(f"{plan.dataset}: {len(cells)} trials of settings")
        tried = _run(cells, plan.jobs, progress)
    for scenario, names in methods.items():
        if fixed is not None:
            settings[scenario] = {method: fixed[method] for method in names}
            continue
        own = [r for r in tried if r["scenario"] == scenario]
        settings[scenario] = {m: _choose(m, own, trials(m, plan.count, plan.given), distance) for m in names}
    cells = list(_table_cells(plan, settings))
    progress.stage(f"{plan.dataset}: {len(cells)} cells, methods times seeds times scenarios")
    return Found(_run(cells, plan.jobs, progress), tried, settings, left_out, seconds)


def _train(plan: Plan, tuned: bool, progress: Progress) -> dict[str, dict[int, float]]:
    jobs: list[ModelJob] = []
    for seed in (*plan.seeds, *([TUNING_SEED] if tuned else [])):
        place = plan.place(plan.scenarios[0], seed)
        jobs.append(ModelJob(plan.model("original", "", seed), place, True, ORIGINAL + seed))
        for scenario in plan.scenarios:
            place = plan.place(scenario, seed)
            jobs.append(ModelJob(plan.model("retrained", scenario, seed), place, False, ORACLE + seed))
            if seed != TUNING_SEED:
                jobs.append(ModelJob(plan.model("other", scenario, seed), place, False, OTHER + seed))
    progress.stage(f"{plan.dataset}: training {len(jobs)} models from nothing")
    spent: dict[str, dict[int, float]] = {scenario: {} for scenario in plan.scenarios}
    trained = run_in_order(
        train_model, [(job,) for job in jobs], jobs=plan.jobs, heard=lambda done, total, _: progress.step(done, total)
    )
    for job, found in zip(jobs, trained, strict=True):
        scenario, seed = job.place.scenario, job.place.seed
        if seed in plan.seeds and job.folder == plan.model("retrained", scenario, seed):
            spent[scenario][seed] = found["cpu_seconds"]
    return spent


def _cell(
    plan: Plan, scenario: str, seed: int, method: str, model: Path, chosen: Mapping[str, Any], trial: int | None = None
) -> Cell:
    place, oracle = plan.place(scenario, seed), plan.model("retrained", scenario, seed)
    # Where the files are does not change what comes out.
    about = {"place": [place.dataset, place.size, scenario, seed], "m": method, "set": dict(chosen), "of": model.name}
    folder = plan.out / "cells" / f"{plan.dataset}-{scenario}-{method.replace(', ', '-').replace(' ', '-')}-{seed}"
    folder = folder.with_name(f"{folder.name}-{example_id(about)}")
    return Cell(folder, place, method, str(model / "model"), str(oracle / "model"), chosen, trial)


def _trial_cells(plan: Plan, methods: Mapping[str, Sequence[str]]) -> Iterator[Cell]:
    seed = TUNING_SEED
    for scenario, names in methods.items():
        yield _cell(plan, scenario, seed, "retrain", plan.model("retrained", scenario, seed), {}, 0)
        for method in names:
            for number, chosen in enumerate(trials(method, plan.count, plan.given)):
                yield _cell(plan, scenario, seed, method, plan.model("original", "", seed), chosen, number)


def _table_cells(plan: Plan, settings: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[Cell]:
    for scenario, chosen in settings.items():
        for seed in plan.seeds:
            start = plan.model("original", "", seed)
            yield _cell(plan, scenario, seed, "retrain", plan.model("retrained", scenario, seed), {})
            yield _cell(plan, scenario, seed, "retrain, other seed", plan.model("other", scenario, seed), {})
            yield _cell(plan, scenario, seed, "original", start, {})
            for method, own in chosen.items():
                yield _cell(plan, scenario, seed, method, start, own)


def _run(cells: Sequence[Cell], jobs: int | None, progress: Progress) -> list[Record]:
    """Run the cells and return their records in the order of the cells."""

    def heard(done: int, total: int, record: Mapping[str, Any]) -> None:
        progress.step(done, total, f"{record['scenario']} {record['method']} seed {record['seed']}")

    return run_in_order(run_cell, [(cell,) for cell in cells], jobs=jobs, heard=heard)


def _choose(
    method: str, tried: Sequence[Record], settings: Sequence[dict[str, Any]], distance: Distance
) -> dict[str, Any]:
    """Return the settings of the trial that came closest; the first where all failed, so that the table says so."""
    own = [r for r in tried if r["method"] == method and "failed" not in r]
    if not own:
        return settings[0]
    oracle = next(r for r in tried if r["method"] == "retrain")
    best = min(own, key=lambda record: (distance(record, oracle), record["trial"]))
    return settings[best["trial"]]
