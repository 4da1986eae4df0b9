"""PrivLeak: how far membership on the forget set is from where it is for a model that never saw it.

Source: Shi et al. 2024, MUSE: Machine Unlearning Six-Way Evaluation, criterion 3. MUSE counts AUC as
P(holdout more likely than forget), open-unlearning as its complement and flips it inside; both give the number below.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import statistic_interval
from expunge.audits.language.membership import min_k_score
from expunge.audits.observations import Observations
from expunge.audits.roc import auc, auc_interval
from expunge.audits.values import Values

Array = NDArray[np.float64]


def privleak(auc_model: float, auc_oracle: float, parity: bool = False) -> float:
    """Return ``100 * ((1 - a) - (1 - r)) / (1 - r)``, a and r the AUCs of the model and of the oracle.

    -100 is fully leaked, 0 ideal, positive over-unlearned.

    Args:
        auc_model: P(forget score > holdout score) under the model, scores higher for members.
        auc_oracle: the same under a model that never saw the forget set.
        parity: add 1e-10 to the denominator, as open-unlearning does.

    Returns:
        Percent; NaN where the oracle's AUC is 1 and the ratio is undefined.
    """
    denominator = (1.0 - auc_oracle) + (1e-10 if parity else 0.0)
    return 100.0 * (auc_oracle - auc_model) / denominator if denominator else float("nan")


class PrivLeak(Audit):
    """PrivLeak of Min-K% against the oracle, with both AUCs and their difference."""

    id = "privleak"
    title = "Is membership as visible as in a model that never saw the data?"
    family = "membership"
    needs = ("holdout", "oracle")
    reads = (("forget", "answer"), ("holdout", "answer"))
    paper = "Shi et al. 2024, MUSE (arXiv:2407.06460)"

    class Config(AuditConfig):
        """Settings of the PrivLeak audit."""

        k: float = Field(0.4, gt=0, le=1, description="share of the least likely tokens that Min-K averages")
        parity: bool = Field(False, description="count tokens and denominators as open-unlearning does")
        resamples: int = Field(1000, ge=100, description="bootstrap resamples of the interval")

    def run(self, seen: Observations) -> Finding:
        values, oracle = Values(seen), seen.oracles[0]
        for model in seen.models:
            for role in ("forget", "holdout"):
                scores = seen.scores(model, role)
                counted = {i: s for i, s in scores.items() if len(s) > (self.config.parity or s.ends_with_eos)}
                found = {i: min_k_score(s, self.config.k, self.config.parity) for i, s in counted.items()}
                values.add(model, role, "min_k", found)
        scalars = [
            Scalar("privleak", "PrivLeak (0 ideal, -100 leaked)", "%", "low", 1),
            Scalar("auc", f"AUC of Min-{self.config.k:.0%}", "AUC", "high"),
            Scalar("auc_difference", "AUC minus the oracle's", "AUC", "high"),
        ]
        return Finding(
            self.id,
            scalars=scalars,
            estimates={model: self._estimates(seen, values, model, oracle) for model in seen.models},
            per_example=values.per_example(),
            attempted={"oracle": oracle, "k": self.config.k, "resamples": self.config.resamples},
        )

    def _estimates(self, seen: Observations, values: Values, model: str, oracle: str) -> dict[str, Estimate]:
        parity, settings = self.config.parity, {"seed": seen.seed, "resamples": self.config.resamples}
        sides = {role: values.get(model, role, "min_k") for role in ("forget", "holdout")}
        both = sides | {f"oracle {role}": values.get(oracle, role, "min_k") for role in sides}
        if not all(both.values()):
            nothing = Estimate(None, note="no example of the forget or holdout set has a token to score")
            return {"auc": nothing, "privleak": nothing, "auc_difference": nothing}
        out = {"auc": auc_interval(list(sides["forget"].values()), list(sides["holdout"].values()))}
        if seen.models[model] is seen.models[oracle]:
            itself = Estimate(None, note="this model is the reference")
            return out | {"privleak": itself, "auc_difference": itself}
        areas = _Areas()
        out["auc_difference"] = statistic_interval(both, lambda parts: float(np.subtract(*areas(parts))), **settings)
        level = auc(list(both["oracle forget"].values()), list(both["oracle holdout"].values()))
        if level >= 1.0 and not parity:
            out["privleak"] = Estimate(
                None, note="undefined: the oracle's AUC is 1, so forget and holdout differ anyway"
            )
            return out
        # A resample in which the oracle's AUC reaches 1 has no ratio; the denominator is held at one pair's weight.
        most = 1.0 if parity else 1.0 - 1.0 / (len(sides["forget"]) * len(sides["holdout"]))

        def ratio(parts: Mapping[str, Array]) -> float:
            own, reference = areas(parts)
            return privleak(own, min(reference, most), parity)

        areas.rewind()
        out["privleak"] = statistic_interval(both, ratio, **settings)
        return out


class _Areas:
    """AUCs of the model and of the oracle by turn: equal seeds draw the same resamples in the same order."""

    def __init__(self) -> None:
        self._known: list[tuple[float, float]] = []
        self._turn = 0

    def rewind(self) -> None:
        self._turn = 0

    def __call__(self, parts: Mapping[str, Array]) -> tuple[float, float]:
        if self._turn == len(self._known):
            own, reference = ((parts[f"{who}forget"], parts[f"{who}holdout"]) for who in ("", "oracle "))
            self._known.append((auc(*own), auc(*reference)))
        self._turn += 1
        return self._known[self._turn - 1]
