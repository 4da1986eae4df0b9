"""Membership inference: can the forget set be told from a holdout set that the model never saw?

Every score here is higher for members, so AUC is P(forget score > holdout score): 1 where the forget set is
remembered, 0.5 where it cannot be told, below 0.5 where it was pushed away, which gives it away as well.

No statistic goes to the verdict: with the holdout as control, the answer NLL tests the same thing once.

Sources: Yeom et al. 2018 (loss); Carlini et al. 2021 (zlib, reference); Shi et al. 2024 (Min-K%); Zhang et al. 2025
(Min-K%++); Carlini et al. 2022 (why low false-positive rates count).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar
from expunge.audits.intervals import auc_interval, roc_curve, tpr_at_fpr
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

RATES = (0.01, 0.001)
LEAST_VARIANCE = 1e-6


def loss_score(scores: TokenScores) -> float:
    """Return the mean log-likelihood of the answer's tokens, end of sequence included."""
    return -scores.nll


def zlib_score(scores: TokenScores) -> float:
    """Return minus the NLL per token divided by the compressed length of the answer in bytes."""
    return -scores.nll / len(zlib.compress(scores.text.encode("utf-8")))


def min_k_score(scores: TokenScores, k: float = 0.4, parity: bool = False) -> float:
    """Return the mean log-probability of the least likely tokens.

    Args:
        scores: token scores of the answer.
        k: share of the tokens to average, at least one token.
        parity: drop the last label always, as open-unlearning does, not only an appended end of sequence.

    Returns:
        Nats; NaN for an answer without tokens.
    """
    return _lowest(scores.log_prob[_counted(scores, parity)], k)


def min_k_plus_plus_score(scores: TokenScores, k: float = 0.4, parity: bool = False) -> float:
    """Return the mean of the lowest ``(log p - mu) / sigma``, with mean and deviation of log p over the vocabulary.

    Args:
        scores, k, parity: as in ``min_k_score``; variances are held at 1e-6 or above.
    """
    counted = _counted(scores, parity)
    sigma = np.sqrt(np.maximum(scores.var_log_prob[counted], LEAST_VARIANCE))
    return _lowest((scores.log_prob[counted] - scores.mean_log_prob[counted]) / sigma, k)


def reference_score(scores: TokenScores, reference: TokenScores) -> float:
    """Return how much less surprised the model is than a reference that never saw the data, in nats per token."""
    return reference.nll - scores.nll


def _counted(scores: TokenScores, parity: bool) -> slice:
    return slice(0, len(scores) - 1) if parity else scores.content


def _lowest(values: np.ndarray[Any, np.dtype[np.float64]], k: float) -> float:
    if not len(values):
        return float("nan")
    return float(np.sort(values)[: max(1, int(k * len(values)))].mean())


def attack_estimates(seen: Observations, values: Values, model: str, name: str) -> dict[str, Estimate]:
    """Return AUC and true positive rates of one membership score, forget against holdout.

    Args:
        seen: the observations.
        values: holds the score for both sets.
        model: name of the model.
        name: of the score.
    """
    members, others = values.get(model, "forget", name), values.get(model, "holdout", name)
    x, y = (np.fromiter(side.values(), float) for side in (members, others))
    groups = {role: seen.groups(role) for role in ("forget", "holdout")}
    area = auc_interval(
        x,
        y,
        member_groups=[groups["forget"][i] for i in members] if groups["forget"] else None,
        non_member_groups=[groups["holdout"][i] for i in others] if groups["holdout"] else None,
    )
    return {f"{name}_auc": area} | {f"{name}_tpr_at_{rate:g}": tpr_at_fpr(x, y, rate) for rate in RATES}


def attack_scalars(name: str, title: str) -> list[Scalar]:
    """Return how to read the numbers of ``attack_estimates``."""
    return [Scalar(f"{name}_auc", f"{title}: AUC", "AUC", "high")] + [
        Scalar(f"{name}_tpr_at_{rate:g}", f"{title}: found at {rate:.1%} false positives", "share", "high")
        for rate in RATES
    ]


def roc_plot(values: Values, models: list[str], name: str, title: str) -> Plot:
    """Return the ROC curve of one membership score for every model that has it."""
    series: dict[str, list[tuple[float, float]]] = {}
    for model in models:
        members, others = values.get(model, "forget", name), values.get(model, "holdout", name)
        if members and others:
            fpr, tpr = roc_curve(list(members.values()), list(others.values()))
            series[model] = list(zip(fpr.tolist(), tpr.tolist(), strict=True))
    return Plot("roc", f"Telling forget from holdout: {title}", "false positive rate", "true positive rate", series)


def attack_finding(
    audit: str, seen: Observations, values: Values, name: str, title: str, attempted: Mapping[str, Any], note: str = ""
) -> Finding:
    """Return the finding of an audit that is one membership score.

    Args:
        audit: id of the audit.
        seen: the observations.
        values: holds the score ``name`` for the forget and the holdout set.
        name, title: of the score.
        attempted, note: as in ``Finding``.
    """
    if not all(values.get("unlearned", role, name) for role in ("forget", "holdout")):
        return Finding(audit, "no data", note=note or "no example of the forget or of the holdout set can be scored")
    return Finding(
        audit,
        scalars=attack_scalars(name, title),
        estimates={model: attack_estimates(seen, values, model, name) for model in seen.models},
        per_example=values.per_example(),
        plots=[roc_plot(values, list(seen.models), name, title)],
        attempted={
            **attempted,
            "members": len(values.get("unlearned", "forget", name)),
            "non-members": len(values.get("unlearned", "holdout", name)),
        },
        note=note,
    )


class Membership(Audit):
    """Five membership scores of the forget set against the holdout set."""

    id = "membership"
    title = "Can an attacker tell that the data was in the training set?"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    paper = "Shi et al. 2024, Min-K% (arXiv:2310.16789); Zhang et al. 2025, Min-K%++ (arXiv:2404.02936)"

    class Config(AuditConfig):
        """Settings of the membership audit."""

        k: float = Field(0.4, gt=0, le=1, description="share of the least likely tokens that Min-K averages")
        parity: bool = Field(False, description="Min-K drops the last label always, as open-unlearning does")

    def run(self, seen: Observations) -> Finding:
        k, parity = self.config.k, self.config.parity
        attacks: dict[str, tuple[str, Callable[[TokenScores], float]]] = {
            "loss": ("Loss", loss_score),
            "zlib": ("Zlib", zlib_score),
            "min_k": (f"Min-{k:.0%}", lambda s: min_k_score(s, k, parity)),
            "min_k_plus_plus": (f"Min-{k:.0%}++", lambda s: min_k_plus_plus_score(s, k, parity)),
        }
        values, reference = Values(seen), next(iter(seen.oracles), None)
        for model in seen.models:
            for role in ("forget", "holdout"):
                scores = {i: s for i, s in seen.scores(model, role).items() if len(s) > (parity or s.ends_with_eos)}
                for name, (_, score) in attacks.items():
                    values.add(model, role, name, {i: score(s) for i, s in scores.items()})
                if reference is not None and seen.models[model] is not seen.models[reference]:
                    other = seen.scores(reference, role)
                    values.add(model, role, "reference", {i: reference_score(s, other[i]) for i, s in scores.items()})
        titles = {name: title for name, (title, _) in attacks.items()} | {"reference": "Reference"}
        estimates: dict[str, dict[str, Estimate]] = {}
        for model in seen.models:
            estimates[model] = {}
            for name in titles:
                if name == "reference" and not values.get(model, "forget", name):
                    why = "no oracle to compare with" if reference is None else "this model is the reference"
                    estimates[model] |= {s.name: Estimate(None, note=why) for s in attack_scalars(name, "")}
                else:
                    estimates[model] |= attack_estimates(seen, values, model, name)
        models = list(seen.models)
        return Finding(
            self.id,
            scalars=[scalar for name, title in titles.items() for scalar in attack_scalars(name, title)],
            estimates=estimates,
            per_example=values.per_example(),
            plots=[roc_plot(values, models, name, titles[name]) for name in ("loss", "min_k_plus_plus")],
            attempted={
                "k": k,
                "members": len(values.get("unlearned", "forget", "loss")),
                "non-members": len(values.get("unlearned", "holdout", "loss")),
                "reference": reference,
            },
        )
