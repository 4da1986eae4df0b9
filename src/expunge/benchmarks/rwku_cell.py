"""One cell of the RWKU table: a method, a seed and a target; runs in a worker process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.benchmarks.rwku_data import Target, read_targets
from expunge.benchmarks.rwku_probes import TELL
from expunge.benchmarks.rwku_scores import scores
from expunge.methods.alternatives import AlternativesMethod
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.plan import draw

UNTOUCHED = ("original", "retrain")
TEXTS = 12  # written by the model itself about each target
TEXT_TOKENS = 160


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes:
        folder: receives ``result.json``.
        where: folder of the targets.
        target: index of the target.
        method: id of a method, or "original" or "retrain" for a model that is only measured.
        seed: of the method.
        model: the model to start from, or the one to measure.
        settings: of the method and of training.
    """

    folder: Path
    where: str
    target: int
    method: str
    seed: int
    model: str
    settings: Mapping[str, Any]


@lru_cache(maxsize=1)
def _targets(where: str) -> list[Target]:
    return read_targets(Path(where))


@lru_cache(maxsize=2)
def _load(path: str) -> CausalLM:
    return CausalLM.load(path)


def own_texts(model: CausalLM, target: Target, seed: int, count: int = TEXTS) -> Dataset:
    """Return what a model writes about a target when it is asked to: the forget set, of which nothing is given.

    Half of the texts are sampled at temperature 1, the others are the likeliest; equal ones are kept once.
    """
    asked = [TELL[k % len(TELL)].format(name=target.name) for k in range(count)]
    limits = [TEXT_TOKENS] * count
    sampled = model.generate(
        asked[::2], limits[::2], temperature=1.0, seed=[draw(seed, target.name, k) % 2**31 for k in range(0, count, 2)]
    )
    greedy = model.generate(asked[1::2], limits[1::2])
    pairs = [*zip(asked[::2], sampled, strict=True), *zip(asked[1::2], greedy, strict=True)]
    return _dataset([{"prompt": prompt, "answer": text} for prompt, text in dict.fromkeys(pairs) if text.strip()])


def own_answers(model: CausalLM, target: Target) -> Dataset:
    """Return the questions of level 2 with the model's own answers: what refusals take the place of."""
    asked = [p.query for p in target.probes if p.level == "question"]
    said = model.generate(asked, [40] * len(asked))
    return _dataset([{"prompt": q, "answer": a} for q, a in zip(asked, said, strict=True) if a.strip()])


def _dataset(rows: list[dict[str, str]]) -> Dataset:
    return Dataset.from_list([{"id": example_id(row), **row} for row in rows])


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell, or read its result if it is there.

    Returns:
        target, method, seed and the numbers of ``scores``; also written to ``result.json``.
    """
    import torch

    done = cell.folder / "result.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    target, start = _targets(cell.where)[cell.target], _load(cell.model)
    numbers: dict[str, Any] = {"target": target.name, "method": cell.method, "seed": cell.seed}
    if cell.method in UNTOUCHED:
        numbers |= scores(start, target)
    else:
        refuses = issubclass(METHODS.get(cell.method), AlternativesMethod)
        forget = own_answers(start, target) if refuses else own_texts(start, target, cell.seed)
        settings = {**cell.settings, "seed": cell.seed}
        outcome = unlearn(start, DeletionRequest(forget, scenario="entity"), cell.method, settings=settings)
        assert isinstance(outcome.model, CausalLM)
        numbers |= scores(outcome.model, target) | {"texts": len(forget)}
        if outcome.training is not None:
            numbers["steps"] = outcome.training.kept_step
    cell.folder.mkdir(parents=True, exist_ok=True)
    scratch = cell.folder / ".result.json"
    scratch.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    os.replace(scratch, done)
    return numbers
