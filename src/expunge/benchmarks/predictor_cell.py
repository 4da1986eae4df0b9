"""One model and one cell of the tables for classifiers and regressors; both run in a process of their own.

A cell is a method, a seed and a scenario on a data set: forget, then measure. Whatever is measured of the new model is
measured of the retrained one too, by the same call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from expunge.benchmarks.predictor_data import known_data, make_request, read_data
from expunge.benchmarks.predictor_measures import measure_classifier, measure_regressor
from expunge.errors import ExpungeError
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.runs.folder import FORGOTTEN, RunFolder
from expunge.runs.summary import forgotten
from expunge.tasks.predictor import Predictor

# Models that are there already.
MEASURED = ("original", "retrain", "retrain, other seed")


@dataclass(frozen=True)
class Place:
    """A scenario on a data set, with a seed of its own draw.

    Attributes:
        dataset: name of the data set.
        where: folder of the published files, or None.
        size: training examples, or None for the set's own number.
        scenario: name of the scenario.
        seed: of what is drawn to be forgotten.
        chosen: file with the ids to forget, where these were chosen with the help of a model; the scenario is then
            only a name.
    """

    dataset: str
    where: str | None
    size: int | None
    scenario: str
    seed: int
    chosen: str | None = None

    def request(self) -> tuple[DeletionRequest, Dataset, Dataset]:
        """Return the request, the training set and the test set."""
        train, test = read_data(self.dataset, self.where, self.size)
        if self.chosen is not None:
            return chosen_request(Path(self.chosen), self.scenario, train, test), train, test
        return make_request(self.dataset, self.scenario, train, test, self.seed), train, test


def chosen_request(file: Path, name: str, train: Dataset, test: Dataset) -> DeletionRequest:
    """Return the request to forget the examples whose ids a file lists.

    Args:
        file: JSON with a list ``ids``.
        name: of the request.
        train, test: the sets; the test set is the holdout set.
    """
    inside = set(json.loads(file.read_text(encoding="utf-8"))["ids"])
    ids = list(train["id"])
    forget, retain = ([i for i, one in enumerate(ids) if (one in inside) == take] for take in (True, False))
    return DeletionRequest(train.select(forget), train.select(retain), test, scenario="examples", name=name)


@dataclass(frozen=True)
class ModelJob:
    """A model to be trained from fresh weights.

    Attributes:
        folder: receives ``model/``, the log, resumable checkpoints and what was done.
        place: what is forgotten; nothing is where ``whole``.
        whole: train on everything: the original.
        seed: of the weights and of training.
    """

    folder: Path
    place: Place
    whole: bool
    seed: int


def train_model(job: ModelJob) -> dict[str, Any]:
    """Train a model, or read what was done if it is there; a training that was stopped goes on.

    Returns:
        ``seconds`` of the training and what ``forgotten`` tells of it.
    """
    run = RunFolder(job.folder)
    if run.has(FORGOTTEN) and run.has("seconds.json"):
        return {**run.read_json("seconds.json"), "done": run.read_json(FORGOTTEN)}
    torch.set_num_threads(1)
    request, train, test = job.place.request()
    data = known_data(job.place.dataset)
    if job.whole:
        request = DeletionRequest(test, train)
    job.folder.mkdir(parents=True, exist_ok=True)
    began = (time.process_time(), time.perf_counter())
    outcome = unlearn(
        data.start(train), request, "retrain", settings={**data.training, "seed": job.seed}, folder=job.folder
    )
    spent = {"cpu_seconds": time.process_time() - began[0], "seconds": time.perf_counter() - began[1]}
    outcome.save(job.folder / "model")
    run.write_json("seconds.json", spent)
    run.write_json(FORGOTTEN, forgotten(outcome))
    run.drop_checkpoints()
    return {**spent, "done": run.read_json(FORGOTTEN)}


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes:
        folder: receives ``result.json``.
        place: what is forgotten.
        method: id of a method, or one of ``MEASURED`` for a model that is only measured.
        model: the model to start from, or the one to measure.
        oracle: the retrained model, which the predictions of regressors are compared with.
        settings: of the method and of training.
        trial: number of this trial, or None for a cell of the table.
    """

    folder: Path
    place: Place
    method: str
    model: str
    oracle: str
    settings: Mapping[str, Any]
    trial: int | None = None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell, or read its result if it is there.

    A method that cannot work on this request, or breaks down, gives a record with the key ``failed``: a table says so
    instead of leaving it out. It is not kept, so that the cell is tried again the next time.

    Returns:
        The cell's numbers; also written to ``result.json``.
    """
    done = cell.folder / "result.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    request, _, test = cell.place.request()
    named = {"dataset": cell.place.dataset, "scenario": cell.place.scenario, "method": cell.method,
             "seed": cell.place.seed, "trial": cell.trial}  # fmt: skip
    start = Predictor.load(cell.model)
    training: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    task = start
    if cell.method not in MEASURED:
        began = (time.process_time(), time.perf_counter())
        try:
            outcome = unlearn(start, request, cell.method, settings={**cell.settings, "seed": cell.place.seed})
        except ExpungeError as error:
            numbers = {"failed": " ".join(str(error).split())}
        else:
            training = {"cpu_seconds": time.process_time() - began[0], "seconds": time.perf_counter() - began[1]}
            assert isinstance(outcome.model, Predictor)
            task = outcome.model
            training["removal_level"] = outcome.removal_level
            if outcome.training is not None:
                training |= {"steps": outcome.training.steps, "diverged": outcome.training.diverged}
    if not numbers:
        if task.outcomes is None:
            numbers = measure_regressor(task, Predictor.load(cell.oracle), request, test, cell.place.seed)
        else:
            numbers = measure_classifier(task, request, test, cell.place.seed)
    record = {**named, **numbers, **training}
    if "failed" in record:
        return record
    cell.folder.mkdir(parents=True, exist_ok=True)
    RunFolder(cell.folder).write_json(done.name, record)
    return record
