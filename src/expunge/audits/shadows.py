"""Shadow models: trained as the audited model was, each on a random half of the examples in question.

What a shadow says about every example is kept in a folder where one is named, so that a killed audit goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from expunge.audits.observations import Observations
from expunge.audits.unseen import unseen_sets
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.encoding import prompt_of
from expunge.tasks.kinds import CLASSIFIERS, PREDICTORS
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings

Array = NDArray[np.float64]
Transform = Callable[[Any, DeletionRequest, int], Any]


@dataclass(frozen=True, eq=False)
class Pool:
    """The examples whose membership is in question.

    Attributes:
        ids: [n] of both sets.
        roles: "forget" and "holdout" -> ids.
        examples: [n] the rows, in the order of ``ids``.
        targets: [n] classes; empty for other kinds of model.
        groups: id -> group; empty unless every example has one.
        answers: id -> the right answer in words.
    """

    ids: Sequence[str]
    roles: Mapping[str, Sequence[str]]
    examples: Dataset
    targets: NDArray[np.int64]
    groups: Mapping[str, str]
    answers: Mapping[str, str]

    def nll(self, said: Array) -> Array:
        """Return [..., n] the NLL in what was said: log-probabilities [..., n, C] of classes, or NLLs [..., n, 1]."""
        if not len(self.targets):
            return said[..., 0]
        return np.asarray(-np.take_along_axis(said, self._index(said), axis=-1)[..., 0])

    def _index(self, said: Array) -> NDArray[np.int64]:
        return np.broadcast_to(self.targets[:, None], (*said.shape[:-1], 1))


def pool_of(seen: Observations) -> Pool:
    """Return the forget examples and the holdout examples that are like them.

    Of a classifier that is to forget a class, unseen examples of other classes are left out: told from the forget set
    by what they show, they would say nothing about membership.
    """
    kind = seen.models["unlearned"].kind
    sets = {role: seen.examples.dataset(role) for role in ("forget", "holdout")}
    if kind not in PREDICTORS:
        sets = {role: _chosen(part, lambda row: bool(row.get("answer"))) for role, part in sets.items()}
    elif kind in CLASSIFIERS and seen.request.scenario == "class":
        _, like = unseen_sets(seen, "unlearned")
        known = set(like.ids) if like is not None else set()
        sets["holdout"] = _chosen(sets["holdout"], lambda row: row["id"] in known)
    roles = {role: sorted(part["id"]) for role, part in sets.items()}
    both = _joined([part for part in sets.values() if len(part)], kind)
    place = {identity: k for k, identity in enumerate(both["id"])}
    ids = sorted(place)
    examples = both.select([place[i] for i in ids])
    grouped = [seen.groups(role) for role in roles]
    column = next(c for c in ("answer", "label", "target") if c in examples.column_names)
    targets = np.zeros(0, dtype=np.int64)
    if kind in CLASSIFIERS:
        targets = np.asarray(seen.models["unlearned"].outcome.encode(examples), dtype=np.int64)
    return Pool(
        ids,
        roles,
        examples,
        targets,
        {**grouped[0], **grouped[1]} if all(grouped) else {},
        dict(zip(ids, map(str, examples[column]), strict=True)),
    )


def _chosen(examples: Dataset, wanted: Callable[[Mapping[str, Any]], bool]) -> Dataset:
    plain = examples.select_columns([c for c in ("id", "answer") if c in examples.column_names])
    return examples.select([k for k, row in enumerate(plain) if wanted(row)])


def _joined(parts: Sequence[Dataset], kind: str) -> Dataset:
    if kind not in PREDICTORS:  # questions of one set may have columns that those of another lack
        return Dataset.from_list([dict(row) for part in parts for row in part.to_list()])
    shared = [c for c in parts[0].column_names if all(c in part.column_names for part in parts)]
    first, *rest = (part.select_columns(shared) for part in parts)
    return concatenate_datasets([first, *(part.cast(first.features) for part in rest)])


def said_by(seen: Observations, model: str, pool: Pool) -> Array:
    """Return [n, k] what an observed model says of the pool; see ``Pool.nll``."""
    if seen.models[model].kind not in PREDICTORS:
        scores = seen.scores(model, "forget") | seen.scores(model, "holdout")
        return np.array([[scores[i].nll] for i in pool.ids])
    rows: dict[str, Any] = {}
    for role in pool.roles:
        found = seen.predictions(model, role)
        said = found.log_probabilities if found.classes else found.nll[:, None]
        rows |= dict(zip(found.ids, said, strict=True))
    return np.array([rows[i] for i in pool.ids])


@dataclass(frozen=True)
class _Work:
    """One shadow model to train and to read."""

    number: int
    seed: int
    start: Task
    fresh: bool
    pool: Dataset
    inside: Sequence[bool]
    retain: Dataset | None
    settings: TrainSettings
    transform: Transform | None


def shadow_answers(
    seen: Observations,
    pool: Pool,
    inside: NDArray[np.bool_],
    settings: TrainSettings,
    *,
    start: str = "fresh",
    transform: Transform | None = None,
    folder: Path | None = None,
    workers: int = 1,
) -> Array:
    """Train shadows on the retain set and their half of the pool, and return what they say.

    Args:
        seen: gives the model whose like they are, the retain set and the seed.
        pool: the examples in question.
        inside: [s, n] which shadow is trained on which example.
        settings: of their training; each has a seed of its own.
        start: "fresh" weights, or a checkpoint that saw none of the pool.
        transform: what every shadow goes through after training, with the request to forget its half.
        folder: keeps what shadows say; not where there is a ``transform``, which has no name to go by.
        workers: shadows trained at a time, each in a process of its own.

    Returns:
        [s, n, k]; see ``Pool.nll``.

    Raises:
        FloatingPointError: a shadow diverged.
    """
    import joblib

    model = seen.models["unlearned"]
    fresh = start == "fresh"
    first = model if fresh else model.load_like(start)
    work = [
        _Work(k, seen.seed * 10_007 + k, first, fresh, pool.examples, row.tolist(), seen.request.retain, settings,
              transform)
        for k, row in enumerate(inside)
    ]  # fmt: skip
    cache = None if folder is None or transform is not None else _cache(seen, pool, inside, settings, start, folder)
    done = joblib.Parallel(n_jobs=workers)(joblib.delayed(_say)(one, cache) for one in work)
    return np.array(done, dtype=np.float64)


def _cache(
    seen: Observations, pool: Pool, inside: NDArray[np.bool_], settings: TrainSettings, start: str, folder: Path
) -> Path:
    task = seen.models["unlearned"]
    config = getattr(task.model, "config", None)
    shapes = {name: list(p.shape) for name, p in task.named_parameters()}
    made = shapes if config is None else config.to_dict()
    parts = [settings.model_dump(mode="json"), start, seen.seed, list(pool.ids), seen.request.fingerprint, made,
             inside.tolist()]  # fmt: skip
    key = json.dumps(parts, default=str)
    place = folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    place.mkdir(parents=True, exist_ok=True)
    return place


def _say(work: _Work, cache: Path | None) -> list[list[float]]:
    """Train one shadow and return what it says of every example of the pool; runs in a worker process."""
    file = None if cache is None else cache / f"shadow-{work.number}.json"
    if file is not None and file.is_file():
        return [[float(v) for v in row] for row in json.loads(file.read_text(encoding="utf-8"))]
    model: Any = work.start.fresh(work.seed) if work.fresh else work.start.copy()
    half = work.pool.select([k for k, chosen in enumerate(work.inside) if chosen])
    if work.fresh and model.kind in PREDICTORS:
        model.refit(half if work.retain is None else work.retain)
    encoded = model.encode(half)
    if work.retain is not None:
        encoded = encoded + model.encode(work.retain)
    objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
    train(model, objective, {"retain": encoded}, work.settings.model_copy(update={"seed": work.seed}))
    if work.transform is not None:
        model = work.transform(model, DeletionRequest(half, work.retain), work.seed)
    said = _said(model, work.pool)
    if not np.isfinite(said).all():
        raise FloatingPointError(f"shadow {work.number} gives NaN or infinite scores; lower learning_rate")
    rows: list[list[float]] = said.tolist()
    if file is not None:
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(rows), encoding="utf-8")
        os.replace(scratch, file)
    return rows


def _said(model: Any, pool: Dataset) -> Array:
    if model.kind in PREDICTORS:
        found = model.observe(model.encode(pool))
        return np.asarray(found.log_probabilities if found.classes else found.nll[:, None])
    scores = model.score([(prompt_of(row), row["answer"]) for row in pool.to_list()])
    return np.array([[s.nll] for s in scores])
