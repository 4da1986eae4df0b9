"""Forget sets of the benchmark ``worst_case``: chosen once per selector and seed, with the model of that seed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.benchmarks.predictor_cell import ModelJob, Place, train_model
from expunge.benchmarks.predictor_data import read_data
from expunge.benchmarks.predictor_tables import ORIGINAL, TUNING_SEED, Plan
from expunge.errors import BadInput, Problem
from expunge.forget_sets.base import FORGET_SETS
from expunge.forget_sets.select import configured, select_forget_set
from expunge.runs.engine import run_in_order
from expunge.runs.folder import RunFolder
from expunge.runs.progress import Progress
from expunge.tasks.predictor import Predictor


class SetsPlan(Plan):
    """A plan whose scenarios are selectors: what is forgotten stands in a file per selector and seed."""

    def place(self, scenario: str, seed: int) -> Place:
        """Return a selector with a seed."""
        return Place(self.dataset, self.where, self.size, scenario, seed, str(self.ids(scenario, seed)))

    def ids(self, scenario: str, seed: int) -> Path:
        """Return the file with the ids to forget."""
        return self.model("set", scenario, seed).with_suffix(".json")

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds of the table and that of the trials."""
        return (*self.seeds, TUNING_SEED) if self.count > 1 else self.seeds


@dataclass(frozen=True)
class SetJob:
    """A forget set to be chosen.

    Attributes:
        file: receives the ids and what the search did.
        dataset, where, size: see ``Place``.
        model: run folder of the original of this seed.
        selector, settings, seed: see ``select_forget_set``.
    """

    file: Path
    dataset: str
    where: str | None
    size: int | None
    model: Path
    selector: str
    settings: Mapping[str, Any]
    seed: int


def choose_set(job: SetJob) -> dict[str, Any]:
    """Choose a forget set, or read it if it is there.

    Returns:
        ``ids``, ``history`` and the seconds that choosing took.
    """
    folder = RunFolder(job.file.parent)
    if job.file.is_file():
        return folder.read_json(job.file.name)
    torch.set_num_threads(1)
    train, _ = read_data(job.dataset, job.where, job.size)
    model = Predictor.load(job.model / "model")
    began = time.process_time()
    found = select_forget_set(train, job.selector, model, settings=job.settings, seed=job.seed)
    state = {
        "ids": sorted(found.request.forget["id"]), "history": list(found.history),
        "cpu_seconds": time.process_time() - began,
    }  # fmt: skip
    folder.write_json(job.file.name, state)
    return state


def selector_settings(selectors: Sequence[str], given: Mapping[str, Any], share: float) -> dict[str, dict[str, Any]]:
    """Give every selector the settings that it knows.

    Args:
        selectors: names.
        given: settings from the command line.
        share: of the training set that each of them takes.

    Returns:
        Settings by selector.

    Raises:
        BadInput: unknown selectors, one that is told what to forget by name, or settings that none of them knows.
    """
    problems: list[Problem] = []
    known: dict[str, set[str]] = {}
    for name in selectors:
        fields = set(FORGET_SETS.get(name).Config.model_fields)
        if "share" not in fields:
            problems.append(Problem("--sets", f"{name} is told what to forget by name", "leave it out"))
        known[name] = fields - {"share", "count", "unit"}
    problems += [
        Problem(f"--select {key}", "is a setting of none of the selectors", "see `expunge forget-sets NAME`")
        for key in given
        if not any(key in fields for fields in known.values())
    ]
    if problems:
        raise BadInput(problems)
    settings = {name: {"share": share, **{k: v for k, v in given.items() if k in known[name]}} for name in selectors}
    for name, own in settings.items():
        configured(name, own)
    return settings


def make_sets(plan: SetsPlan, settings: Mapping[str, Mapping[str, Any]], progress: Progress) -> dict[str, Any]:
    """Train the original of every seed and choose every forget set with it; what is there is only read.

    Returns:
        selector -> seed -> what choosing it gave.
    """
    # An original is trained on everything, so that the scenario of its place does not matter.
    anywhere = Place(plan.dataset, plan.where, plan.size, "random", 0)
    originals = [
        ModelJob(plan.model("original", "", seed), anywhere, True, ORIGINAL + seed) for seed in plan.every_seed
    ]
    progress.stage(f"{plan.dataset}: training {len(originals)} models on everything")
    told: Any = lambda done, total, _: progress.step(done, total)  # noqa: E731
    run_in_order(train_model, [(job,) for job in originals], jobs=plan.jobs, heard=told)
    jobs = [
        SetJob(
            plan.ids(name, seed), plan.dataset, plan.where, plan.size, plan.model("original", "", seed), name, own, seed
        )
        for name, own in settings.items()
        for seed in plan.every_seed
    ]  # fmt: skip
    progress.stage(f"{plan.dataset}: choosing {len(jobs)} forget sets")
    found: dict[str, Any] = {name: {} for name in settings}
    chosen = run_in_order(choose_set, [(job,) for job in jobs], jobs=plan.jobs, heard=told)
    for job, state in zip(jobs, chosen, strict=True):
        found[job.selector][job.seed] = state
    return found
