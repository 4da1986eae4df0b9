"""LiRA: is an example's likelihood that of models trained with it, or of models trained without it?

Shadow models are trained with and without each example; the audit compares what the audited model says about it with
what both kinds say. It is the strongest membership attack there is and the dearest, so it runs only when asked for.

Shadows start from fresh weights, or from a checkpoint that saw neither set, and are trained on the retain set and a
random half of forget and holdout. With ``transform`` each shadow then unlearns the half it was trained on (U-LiRA), and
the question becomes: does the audited model look like one that unlearned the example, or like one that never saw it?

Sources: Carlini et al. 2022, Membership Inference Attacks From First Principles; Hayes et al. 2024, Inexact
Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy (U-LiRA).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar, Table
from expunge.audits.intervals import statistic_interval
from expunge.audits.membership_attacks import attack_estimates, attack_scalars, roc_plot
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.requests.request import DeletionRequest
from expunge.tasks.encoding import prompt_of
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Transform = Callable[["CausalLM", DeletionRequest, int], "CausalLM"]
MODES = {"online": "LiRA, online", "offline": "LiRA, offline"}
LEAST_DEVIATION = 1e-6
EXPOSED = 20


def logit_confidence(nll_values: Array) -> Array:
    """Return ``log(p / (1 - p))`` of the confidence ``p = exp(-NLL)``, without cancellation near p = 1.

    Args:
        nll_values: any shape, in nats, above 0.
    """
    return -nll_values - np.log(-np.expm1(-np.maximum(nll_values, 1e-12)))


def lira_scores(
    observed: Array, shadows: Array, inside: Mask, mode: Literal["online", "offline"], pooled: bool = True
) -> Array:
    """Return the likelihood-ratio score of each example, higher for members.

    Args:
        observed: [n] statistic of each example under the audited model, such as minus the NLL.
        shadows: [s, n] the same under each shadow model.
        inside: [s, n] whether a shadow was trained with the example.
        mode: "online" gives ``log N(x; in) - log N(x; out)``; "offline" gives ``Phi((x - mean_out) / deviation_out)``
            and needs no shadow that saw the example.
        pooled: one deviation per side for all examples, taken within examples; steadier with few shadows (the paper
            advises it below 64). Otherwise each example has its own.

    Returns:
        [n] scores; deviations are held at 1e-6 or above.

    Raises:
        ValueError: an example that too few shadows have left out or, online, seen: one each, two if not pooled.
    """
    least = 1 if pooled else 2
    if (~inside).sum(0).min() < least or (mode == "online" and inside.sum(0).min() < least):
        raise ValueError(f"every example needs at least {least} shadow(s) with and without it")
    mean_out, deviation_out = _gaussian(shadows, ~inside, pooled)
    if mode == "offline":
        return np.asarray(stats.norm.cdf((observed - mean_out) / deviation_out))
    mean_in, deviation_in = _gaussian(shadows, inside, pooled)
    ratio = stats.norm.logpdf(observed, mean_in, deviation_in) - stats.norm.logpdf(observed, mean_out, deviation_out)
    return np.asarray(ratio)


def _gaussian(shadows: Array, side: Mask, pooled: bool) -> tuple[Array, Array]:
    count = side.sum(0)
    mean = np.where(side, shadows, 0.0).sum(0) / count
    squares = (np.where(side, shadows - mean, 0.0) ** 2).sum(0)
    free = np.maximum(count - 1, 0)
    variance = np.full_like(mean, squares.sum() / max(1, free.sum())) if pooled else squares / free
    return mean, np.maximum(np.sqrt(variance), LEAST_DEVIATION)


def draw_halves(ids: Sequence[str], groups: Mapping[str, str], shadows: int, seed: int) -> Mask:
    """Decide which shadow is trained on which example: each on half of them, each example in half of the shadows.

    Args:
        ids: [n] examples.
        groups: example id -> group; the examples of a group go together, because they give each other away.
        shadows: how many, even.
        seed: of the draw; the order of ``ids`` does not matter.

    Returns:
        [shadows, n].
    """
    units = sorted({groups.get(i, i) for i in ids})
    column = {unit: k for k, unit in enumerate(units)}
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(shadows // 2):
        half = np.zeros(len(units), dtype=bool)
        half[rng.permutation(len(units))[: (len(units) + 1) // 2]] = True
        rows += [half, ~half]
    return np.stack(rows)[:, [column[groups.get(i, i)] for i in ids]]


@dataclass(frozen=True)
class _Work:
    """One shadow model to train and to read."""

    number: int
    seed: int
    start: CausalLM
    fresh: bool
    pool: Dataset
    inside: Sequence[bool]
    retain: Dataset | None
    settings: TrainSettings
    transform: Transform | None


class Lira(Audit):
    """Membership of the forget set against the holdout set by the likelihood ratio of shadow models.

    Args:
        config: the settings.
        transform: what every shadow goes through after training, with the request to forget its half; U-LiRA.
    """

    id = "lira"
    title = "Do models trained with and without each example tell that the data was in the training set?"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    default = False
    paper = "Carlini et al. 2022, Membership Inference Attacks From First Principles (arXiv:2112.03570)"

    class Config(AuditConfig):
        """Settings of the LiRA audit: the budget is shadows times steps."""

        shadows: int = Field(16, ge=4, multiple_of=2, description="shadow models; each example is in half of them")
        statistic: Literal["log_likelihood", "logit"] = Field(
            "log_likelihood", description="minus the NLL per token, or log(p / (1 - p)) of p = exp(-NLL)"
        )
        start: str = Field(
            "fresh", description="what shadows start from: fresh weights, or a checkpoint that saw neither set"
        )
        epochs: int = Field(20, ge=1, description="passes over the retain set and the shadow's half; as for the model")
        max_steps: int | None = Field(None, ge=1, description="optimiser steps per shadow at most")
        batch_size: int = Field(16, ge=1, description="examples per step")
        learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the shadows")
        pooled: bool = Field(True, description="one deviation for all examples; switch off from 64 shadows on")
        workers: int = Field(1, ge=1, description="shadows trained at a time, each in a process of its own")
        folder: Path | None = Field(None, description="keep what shadows say here, so that a killed audit goes on")

    def __init__(self, config: AuditConfig | None = None, transform: Transform | None = None):
        super().__init__(config)
        self._transform = transform

    def run(self, seen: Observations) -> Finding:
        rows = {i: row for role in ("forget", "holdout") for i, row in seen.rows(role).items() if row.get("answer")}
        ids = sorted(rows)
        grouped = [seen.groups("forget"), seen.groups("holdout")]
        groups = {**grouped[0], **grouped[1]} if all(grouped) else {}
        if len({groups.get(i, i) for i in ids}) < 4:
            return Finding(self.id, "no data", note="fewer than 4 examples or groups cannot be dealt to shadows")
        inside = draw_halves(ids, groups, self.config.shadows, seen.seed)
        shadows = self._statistic(self._shadows(seen, [rows[i] for i in ids], ids, inside))
        values = Values(seen)
        for model in seen.models:
            scores = seen.scores(model, "forget") | seen.scores(model, "holdout")
            observed = self._statistic(np.array([scores[i].nll for i in ids]))
            for mode in MODES:
                found = dict(zip(ids, lira_scores(observed, shadows, inside, mode, self.config.pooled), strict=True))  # type: ignore[arg-type]
                for role in ("forget", "holdout"):
                    values.add(model, role, mode, {i: float(found[i]) for i in seen.scores(model, role)})
        title = "LiRA, online: balanced accuracy of its own threshold"
        balanced = Scalar("online_balanced_accuracy", title, "share", "high")
        return Finding(
            self.id,
            scalars=[*(s for mode, title in MODES.items() for s in attack_scalars(mode, title)), balanced],
            estimates={
                model: {
                    **attack_estimates(seen, values, model, "online"),
                    **attack_estimates(seen, values, model, "offline"),
                    "online_balanced_accuracy": _balanced_accuracy(values, model, seen.seed),
                }
                for model in seen.models
            },
            per_example=values.per_example(),
            plots=[roc_plot(values, list(seen.models), mode, title) for mode, title in MODES.items()],
            tables=[_exposed(values, seen)],
            attempted={
                "shadows": self.config.shadows,
                "start": self.config.start,
                "epochs": self.config.epochs,
                "most steps": self.config.max_steps,
                "statistic": self.config.statistic,
                "pooled deviation": self.config.pooled,
                "unlearned": self._transform is not None,
                "members": len(values.get("unlearned", "forget", "online")),
                "non-members": len(values.get("unlearned", "holdout", "online")),
            },
        )

    def _statistic(self, nll_values: Array) -> Array:
        return logit_confidence(nll_values) if self.config.statistic == "logit" else -nll_values

    # ---- shadows ---------------------------------------------------------------------------------------------------

    def _shadows(
        self, seen: Observations, rows: Sequence[Mapping[str, Any]], ids: Sequence[str], inside: Mask
    ) -> Array:
        """Return [shadows, n] the NLL of every example under every shadow."""
        import joblib

        model = seen.models["unlearned"]
        fresh = self.config.start == "fresh"
        start = model if fresh else model.load_like(self.config.start)
        settings = TrainSettings(
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            warmup=0.1,
            schedule="cosine",
        )
        retain = seen.request.retain
        work = [
            _Work(
                k,
                seen.seed * 10_007 + k,
                start,
                fresh,
                Dataset.from_list([dict(row) for row in rows]),
                inside[k].tolist(),
                retain,
                settings,
                self._transform,
            )
            for k in range(len(inside))
        ]
        cache = self._cache(seen, ids, inside)
        done = joblib.Parallel(n_jobs=self.config.workers)(joblib.delayed(_say)(one, cache) for one in work)
        return np.array(done, dtype=np.float64)

    def _cache(self, seen: Observations, ids: Sequence[str], inside: Mask) -> Path | None:
        if self.config.folder is None or self._transform is not None:  # what a function does has no name to go by
            return None
        settings = self.config.model_dump(mode="json", exclude={"folder", "workers", "pooled", "statistic"})
        config = seen.models["unlearned"].model.config.to_dict()
        parts = [settings, seen.seed, list(ids), seen.request.fingerprint, config, inside.tolist()]
        key = json.dumps(parts, default=str)
        folder = self.config.folder / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _say(work: _Work, cache: Path | None) -> list[float]:
    """Train one shadow and return the NLL of every example of the pool; runs in a worker process."""
    file = None if cache is None else cache / f"shadow-{work.number}.json"
    if file is not None and file.is_file():
        return [float(v) for v in json.loads(file.read_text(encoding="utf-8"))]
    model = work.start.fresh(work.seed) if work.fresh else work.start.copy()
    half = work.pool.select([k for k, chosen in enumerate(work.inside) if chosen])
    encoded = model.encode(half)
    if work.retain is not None:
        encoded = encoded + model.encode(work.retain)
    objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
    train(model, objective, {"retain": encoded}, work.settings.model_copy(update={"seed": work.seed}))
    if work.transform is not None:
        model = work.transform(model, DeletionRequest(half, work.retain), work.seed)
    said = [s.nll for s in model.score([(prompt_of(row), row["answer"]) for row in work.pool.to_list()])]
    if not np.isfinite(said).all():
        raise FloatingPointError(f"shadow {work.number} gives NaN or infinite scores; lower learning_rate")
    if file is not None:
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(said), encoding="utf-8")
        os.replace(scratch, file)
    return said


def _balanced_accuracy(values: Values, model: str, seed: int) -> Estimate:
    """Return the mean of both rates of right calls where a ratio above 1 is called a member."""
    sides = {role: values.get(model, role, "online") for role in ("forget", "holdout")}
    return statistic_interval(
        sides, lambda parts: float(((parts["forget"] > 0).mean() + (parts["holdout"] <= 0).mean()) / 2), seed=seed
    )


def _exposed(values: Values, seen: Observations) -> Table:
    """The forget examples of the audited model that shadows give away most; averages hide them."""
    found = sorted(values.get("unlearned", "forget", "online").items(), key=lambda item: -item[1])[:EXPOSED]
    rows = [(i, str(seen.rows("forget")[i]["answer"])[:80], round(score, 3)) for i, score in found]
    return Table("Most exposed examples of the audited model", ("id", "answer", "log likelihood ratio"), rows)
