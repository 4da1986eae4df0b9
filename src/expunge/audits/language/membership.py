"""Membership inference: can the forget set be told from a holdout set that the model never saw?

Every score here is higher for members, so AUC is P(forget score > holdout score): 1 where the forget set is
remembered, 0.5 where it cannot be told, below 0.5 where it was pushed away, which gives it away as well.

By default no statistic goes to the verdict: with the holdout as control, the answer NLL tests the loss attack already.
With ``evidence`` set, ``min_k_plus_plus`` does, per example, against the oracles: it sees what an average hides, tokens
that were pushed far below what not knowing explains, or answers held down while their ranks stayed.

Sources: Yeom et al. 2018 (loss); Carlini et al. 2021 (zlib, reference); Shi et al. 2024 (Min-K%); Zhang et al. 2025
(Min-K%++); Carlini et al. 2022 (why low false-positive rates count).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding
from expunge.audits.membership_attacks import attack_estimates, attack_scalars, roc_plot
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

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
        parity: as open-unlearning does: drop the last label always, not only an appended end of sequence, and count
            an answer of one label as 0.

    Returns:
        Nats; NaN for an answer without tokens, unless in parity.
    """
    return _lowest(scores.log_prob[_counted(scores, parity)], k, 0.0 if parity else float("nan"))


def min_k_plus_plus_score(scores: TokenScores, k: float = 0.4, parity: bool = False) -> float:
    """Return the mean of the lowest ``(log p - mu) / sigma``, with mean and deviation of log p over the vocabulary.

    Args:
        scores, k, parity: as in ``min_k_score``; variances are held at 1e-6 or above.
    """
    counted = _counted(scores, parity)
    sigma = np.sqrt(np.maximum(scores.var_log_prob[counted], LEAST_VARIANCE))
    values = (scores.log_prob[counted] - scores.mean_log_prob[counted]) / sigma
    return _lowest(values, k, 0.0 if parity else float("nan"))


def reference_score(scores: TokenScores, reference: TokenScores) -> float:
    """Return how much less surprised the model is than a reference that never saw the data, in nats per token."""
    return reference.nll - scores.nll


def _counted(scores: TokenScores, parity: bool) -> slice:
    return slice(0, len(scores) - 1) if parity else scores.content


def _lowest(values: np.ndarray[Any, np.dtype[np.float64]], k: float, empty: float) -> float:
    if not len(values):
        return empty
    return float(np.sort(values)[: max(1, int(k * len(values)))].mean())


class Membership(Audit):
    """Five membership scores of the forget set against the holdout set, all from the shared pass.

    Those that score further sequences are audits of their own: lowercase, recall, neighbour, gradient_norm and lira.
    """

    id = "membership"
    title = "Can an attacker tell that the data was in the training set?"
    family = "membership"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    paper = "Shi et al. 2024, Min-K% (arXiv:2310.16789); Zhang et al. 2025, Min-K%++ (arXiv:2404.02936)"

    class Config(AuditConfig):
        """Settings of the membership audit."""

        k: float = Field(0.4, gt=0, le=1, description="share of the least likely tokens that Min-K averages")
        parity: bool = Field(False, description="Min-K drops the last label always, as open-unlearning does")
        evidence: bool = Field(
            False,
            description="let the verdict test Min-K++ per example against the oracles; off by default, as the error "
            "rates in docs/verdict.md were measured without it",
        )

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
            evidence=values.evidence("min_k_plus_plus", "forget", "high")
            if self.config.evidence and seen.oracles
            else (),
            plots=[roc_plot(values, models, name, titles[name]) for name in ("loss", "min_k_plus_plus")],
            attempted={
                "k": k,
                "members": len(values.get("unlearned", "forget", "loss")),
                "non-members": len(values.get("unlearned", "holdout", "loss")),
                "reference": reference,
            },
        )
