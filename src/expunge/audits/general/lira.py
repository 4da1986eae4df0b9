"""LiRA: is an example's likelihood that of models trained with it, or of models trained without it?

Shadow models are trained with and without each example; the audit compares what the audited model says about it with
what both kinds say. It is the strongest membership attack there is and the dearest, so it runs only when asked for.

Shadows start from fresh weights, or from a checkpoint that saw neither set, and are trained on the retain set and a
random half of forget and holdout. With ``transform`` each shadow then unlearns the half it was trained on (U-LiRA), and
the question becomes: does the audited model look like one that unlearned the example, or like one that never saw it?

Language models and regressors are read by their loss per example, classifiers by five features of what they predict.

Sources: Carlini et al. 2022, Membership Inference Attacks From First Principles; Hayes et al. 2024, Inexact
Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy (U-LiRA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats
from scipy.special import logsumexp

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar, Table
from expunge.audits.intervals import statistic_interval
from expunge.audits.membership_attacks import attack_estimates, attack_scalars, roc_plot
from expunge.audits.observations import Observations
from expunge.audits.prediction_features import FEATURES, features_of
from expunge.audits.shadows import Pool, Transform, pool_of, said_by, shadow_answers
from expunge.audits.values import Values
from expunge.tasks.kinds import CLASSIFIERS, KINDS
from expunge.training.settings import TrainSettings

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MODES = {"online": "LiRA, online", "offline": "LiRA, offline"}
LEAST_DEVIATION = 1e-6
EXPOSED = 20


def logit_confidence(nll_values: Array) -> Array:
    """Return ``log(p / (1 - p))`` of the confidence ``p = exp(-NLL)``, without cancellation near p = 1.

    Args:
        nll_values: any shape, in nats, above 0.
    """
    return -nll_values - np.log(-np.expm1(-np.maximum(nll_values, 1e-12)))


def class_logit(log_probabilities: Array, targets: NDArray[np.int64]) -> Array:
    """Return ``log(p_y / sum_{c != y} p_c)``, which keeps its precision where the other classes have next to nothing.

    Args:
        log_probabilities: [..., n, C] of the classes, in nats.
        targets: [n] true classes.
    """
    own = np.arange(log_probabilities.shape[-1]) == targets[:, None]
    others = np.where(own, -np.inf, log_probabilities)
    return np.asarray(log_probabilities[..., np.arange(len(targets)), targets] - logsumexp(others, axis=-1))


def lira_scores(
    observed: Array,
    shadows: Array,
    inside: Mask,
    mode: Literal["online", "offline"],
    pooled: bool = True,
    parity: bool = False,
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
        parity: as the authors' code, see ``released_lira_scores``.

    Returns:
        [n] scores; deviations are held at 1e-6 or above.

    Raises:
        ValueError: an example that too few shadows have left out or, online, seen: one each, two if not pooled.
    """
    least = 1 if pooled else 2
    if (~inside).sum(0).min() < least or (mode == "online" and inside.sum(0).min() < least):
        raise ValueError(f"every example needs at least {least} shadow(s) with and without it")
    if parity:
        return released_lira_scores(observed, shadows, inside, mode, pooled)
    if mode == "offline":
        return np.asarray(stats.norm.cdf(deviations(observed, shadows, inside, pooled)))
    mean_out, deviation_out = _gaussian(shadows, ~inside, pooled)
    mean_in, deviation_in = _gaussian(shadows, inside, pooled)
    ratio = stats.norm.logpdf(observed, mean_in, deviation_in) - stats.norm.logpdf(observed, mean_out, deviation_out)
    return np.asarray(ratio)


def deviations(observed: Array, shadows: Array, inside: Mask, pooled: bool = True) -> Array:
    """Return ``(x - mean_out) / deviation_out`` of each example, [n].

    It orders examples as the offline score does, which is its ``Phi``, and goes on telling them apart where that is 1
    in float64, from 8.3 on.

    Args:
        observed, shadows, inside, pooled: as for ``lira_scores``.
    """
    mean, deviation = _gaussian(shadows, ~inside, pooled)
    return np.asarray((observed - mean) / deviation)


def released_lira_scores(
    observed: Array, shadows: Array, inside: Mask, mode: Literal["online", "offline"], pooled: bool = True
) -> Array:
    """Return what the authors' code scores (for parity only), higher for members.

    It centres on medians, divides squares by their number instead of one less, and adds 1e-30 to deviations. A pooled
    deviation is that of all values of all examples around one mean, so that differences between examples count as
    spread; online it is that of the members for both sides. Offline the score is minus the log-density without the
    example: an example is also called a member where its likelihood is unusually *low*. Of every example as many
    shadows are read, the first ones, as the example with the fewest has.

    Args:
        observed, shadows, inside, mode, pooled: as for ``lira_scores``.
    """

    def side(mask: Mask) -> Array:
        count = mask.sum(0).min()
        return np.stack([shadows[mask[:, k], k][:count] for k in range(shadows.shape[1])], axis=1)

    out = side(~inside)
    if mode == "offline":
        return np.asarray(-stats.norm.logpdf(observed, np.median(out, 0), out.std(None if pooled else 0) + 1e-30))
    own = side(inside)
    spread = (own.std(), own.std()) if pooled else (own.std(0), out.std(0))
    log_in, log_out = (
        stats.norm.logpdf(observed, np.median(values, 0), deviation + 1e-30)
        for values, deviation in zip((own, out), spread, strict=True)
    )
    return np.asarray(log_in - log_out)


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


class Lira(Audit):
    """Membership of the forget set against the holdout set by the likelihood ratio of shadow models.

    Args:
        config: the settings.
        transform: what every shadow goes through after training, with the request to forget its half; U-LiRA.
    """

    id = "lira"
    title = "Do models trained with and without each example tell that the data was in the training set?"
    tasks = KINDS
    family = "membership"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    default = False
    paper = "Carlini et al. 2022, Membership Inference Attacks From First Principles (arXiv:2112.03570)"

    class Config(AuditConfig):
        """Settings of the LiRA audit: the budget is shadows times steps."""

        shadows: int = Field(16, ge=4, multiple_of=2, description="shadow models; each example is in half of them")
        statistic: Literal["auto", "log_likelihood", "logit"] = Field(
            "auto",
            description="minus the NLL, or log(p / (1 - p)) of p = exp(-NLL); auto: the latter for classifiers only",
        )
        start: str = Field(
            "fresh", description="what shadows start from: fresh weights, or a checkpoint that saw neither set"
        )
        epochs: int = Field(20, ge=1, description="passes over the retain set and the shadow's half; as for the model")
        max_steps: int | None = Field(None, ge=1, description="optimiser steps per shadow at most")
        batch_size: int = Field(16, ge=1, description="examples per step")
        learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the shadows")
        pooled: bool = Field(True, description="one deviation for all examples; switch off from 64 shadows on")
        parity: bool = Field(
            False, description="reproduce the authors' code: medians, and offline a score that has two sides"
        )
        workers: int = Field(1, ge=1, description="shadows trained at a time, each in a process of its own")
        folder: Path | None = Field(None, description="keep what shadows say here, so that a killed audit goes on")

    def __init__(self, config: AuditConfig | None = None, transform: Transform | None = None):
        super().__init__(config)
        self._transform = transform

    def run(self, seen: Observations) -> Finding:
        pool = pool_of(seen)
        ids, groups = pool.ids, pool.groups
        if len({groups.get(i, i) for i in ids}) < 4 or not all(pool.roles.values()):
            note = "fewer than 4 examples or groups cannot be dealt to shadows"
            return Finding(self.id, "no data", note=note)
        inside = draw_halves(ids, groups, self.config.shadows, seen.seed)
        shadows = self._shadows(seen, pool, inside)
        kind, values = seen.models["unlearned"].kind, Values(seen)
        features = FEATURES if kind in CLASSIFIERS else {}
        for model in seen.models:
            said = said_by(seen, model, pool)
            observed, known = self._statistic(pool, said, kind), self._statistic(pool, shadows, kind)
            for mode in MODES:
                score = self._scores(observed, known, inside, mode)
                self._keep(values, pool, model, mode, score)
            for name in features:
                parts = [self._feature(pool, said, name), self._feature(pool, shadows, name)]
                # Of several numbers per example, each is taken by itself and the ratios are multiplied.
                each = [self._scores(parts[0][..., k], parts[1][..., k], inside, "online")
                        for k in range(parts[0].shape[-1])]  # fmt: skip
                self._keep(values, pool, model, f"online_{name}", np.sum(each, axis=0))
        title = "LiRA, online: balanced accuracy of its own threshold"
        balanced = Scalar("online_balanced_accuracy", title, "share", "high")
        more = [Scalar(f"online_{n}_auc", f"LiRA, online, on {t}: AUC", "AUC", "high") for n, t in features.items()]
        return Finding(
            self.id,
            scalars=[*(s for mode, title in MODES.items() for s in attack_scalars(mode, title)), balanced, *more],
            estimates={
                model: {
                    **attack_estimates(seen, values, model, "online"),
                    **attack_estimates(seen, values, model, "offline"),
                    "online_balanced_accuracy": _balanced_accuracy(values, model, seen.seed),
                    **{s.name: _auc(seen, values, model, s.name) for s in more},
                }
                for model in seen.models
            },
            per_example=values.per_example(),
            plots=[roc_plot(values, list(seen.models), mode, title) for mode, title in MODES.items()],
            tables=[_exposed(values, pool)],
            attempted={
                "shadows": self.config.shadows,
                "start": self.config.start,
                "epochs": self.config.epochs,
                "most steps": self.config.max_steps,
                "statistic": self._named(kind),
                "pooled deviation": self.config.pooled,
                "as released": self.config.parity,
                "unlearned": self._transform is not None,
                "members": len(values.get("unlearned", "forget", "online")),
                "non-members": len(values.get("unlearned", "holdout", "online")),
            },
        )

    def _named(self, kind: str) -> str:
        if self.config.statistic != "auto":
            return str(self.config.statistic)
        return "logit" if kind in CLASSIFIERS else "log_likelihood"

    def _statistic(self, pool: Pool, said: Array, kind: str) -> Array:
        if self._named(kind) != "logit":
            return -pool.nll(said)
        return class_logit(said, pool.targets) if kind in CLASSIFIERS else logit_confidence(pool.nll(said))

    def _feature(self, pool: Pool, said: Array, name: str) -> Array:
        """Return [..., n, k] a feature of log-probabilities [..., n, C]; the confidence as its logit."""
        if name == "confidence":
            return class_logit(said, pool.targets)[..., None]
        flat = np.exp(said.reshape(-1, said.shape[-1]))
        found = features_of(flat, np.tile(pool.targets, len(flat) // len(pool.targets)))[name]
        return found.reshape(*said.shape[:-1], found.shape[-1])

    def _scores(self, observed: Array, shadows: Array, inside: Mask, mode: str) -> Array:
        if mode == "offline" and not self.config.parity:
            return deviations(observed, shadows, inside, self.config.pooled)
        return lira_scores(observed, shadows, inside, mode, self.config.pooled, self.config.parity)  # type: ignore[arg-type]

    def _keep(self, values: Values, pool: Pool, model: str, name: str, scores: Array) -> None:
        found = dict(zip(pool.ids, scores.tolist(), strict=True))
        for role, own in pool.roles.items():
            values.add(model, role, name, {i: found[i] for i in own})

    def _shadows(self, seen: Observations, pool: Pool, inside: Mask) -> Array:
        settings = TrainSettings(
            epochs=self.config.epochs,
            max_steps=self.config.max_steps,
            batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate,
            warmup=0.1,
            schedule="cosine",
        )
        return shadow_answers(
            seen,
            pool,
            inside,
            settings,
            start=self.config.start,
            transform=self._transform,
            folder=self.config.folder,
            workers=self.config.workers,
        )


def _auc(seen: Observations, values: Values, model: str, scalar: str) -> Estimate:
    return attack_estimates(seen, values, model, scalar.removesuffix("_auc"))[scalar]


def _balanced_accuracy(values: Values, model: str, seed: int) -> Estimate:
    """Return the mean of both rates of right calls where a ratio above 1 is called a member."""
    sides = {role: values.get(model, role, "online") for role in ("forget", "holdout")}
    return statistic_interval(
        sides, lambda parts: float(((parts["forget"] > 0).mean() + (parts["holdout"] <= 0).mean()) / 2), seed=seed
    )


def _exposed(values: Values, pool: Pool) -> Table:
    """The forget examples of the audited model that shadows give away most; averages hide them."""
    found = sorted(values.get("unlearned", "forget", "online").items(), key=lambda item: -item[1])[:EXPOSED]
    rows = [(i, pool.answers[i][:80], round(score, 3)) for i, score in found]
    return Table("Most exposed examples of the audited model", ("id", "answer", "log likelihood ratio"), rows)
