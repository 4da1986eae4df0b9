"""Forget quality: could the truth ratios on the forget set come from a model that never saw it?

Source: Maini et al. 2024, TOFU, section 2.2.3: the p-value of a two-sample Kolmogorov-Smirnov test between the truth
ratios of the unlearned and of the retained-only model. It depends on n: never compare it across sizes. A large p-value
from few examples says little, so it is no evidence for removal, and the verdict tests equivalence instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar
from expunge.audits.language.truth_ratio import Correct, Mean, log_truth_ratios, reads_of
from expunge.audits.observations import Observations

# The smallest positive float: a p-value below it can only be bounded.
LEAST = 5e-324


class ForgetQuality(NamedTuple):
    """Result of the test: log10 of the p-value, the KS distance, and the two sample sizes."""

    log10_p: float
    distance: float
    n: int
    m: int


def forget_quality(model: Sequence[float], oracle: Sequence[float]) -> ForgetQuality:
    """Compare truth ratios by a two-sided two-sample Kolmogorov-Smirnov test.

    The test looks at ranks only, so ratios, their logarithms or their inverses give the same answer.

    Args:
        model, oracle: truth ratios (or their logarithms) on the forget set.
    """
    from scipy.stats import ks_2samp

    result = ks_2samp(model, oracle)
    return ForgetQuality(math.log10(max(float(result.pvalue), LEAST)), float(result.statistic), len(model), len(oracle))


class ForgetQualityAudit(Audit):
    """log10 p of the KS test between the truth ratios of each model and the oracle's."""

    id = "forget_quality"
    title = "Could these truth ratios come from a model that never saw the data?"
    needs = ("oracle", "perturbed_answers")
    reads = (("forget", "perturbed_answers"), ("forget", "paraphrased_answer"))
    paper = "Maini et al. 2024, TOFU (arXiv:2401.06121)"

    class Config(AuditConfig):
        """Settings of the forget-quality audit."""

        mean: Mean = Field("geometric", description="of the wrong answers' probabilities: geometric or arithmetic")
        correct: Correct = Field("auto", description="which answer is the correct one, see the truth_ratio audit")
        parity: bool = Field(False, description="truth ratios as open-unlearning's, see the truth_ratio audit")

    def reading(self, seen: Observations) -> Sequence[tuple[str, str]]:
        return reads_of(seen, ["forget"], self.config.correct)

    def run(self, seen: Observations) -> Finding:
        config = self.config
        logs = {m: log_truth_ratios(seen, m, "forget", config.correct, config.mean, config.parity) for m in seen.models}
        if not logs["unlearned"]:
            return Finding(self.id, "no data", note="no forget example has both wrong answers and the correct one")
        oracle = seen.oracles[0]
        estimates: dict[str, dict[str, Estimate]] = {}
        for model, values in logs.items():
            if seen.models[model] is seen.models[oracle]:
                itself = Estimate(None, note="this model is the reference")
                estimates[model] = {"log10_p": itself, "ks_distance": itself}
                continue
            result = forget_quality(list(values.values()), list(logs[oracle].values()))
            bound = "at most: below the smallest float" if result.log10_p <= math.log10(LEAST) else ""
            estimates[model] = {
                "log10_p": Estimate(result.log10_p, n=result.n, note=bound),
                "ks_distance": Estimate(result.distance, n=result.n),
            }
        plot = Plot(
            "curve",
            "Share of forget examples up to a truth ratio",
            "log truth ratio",
            "share of examples",
            {model: _cumulative(list(values.values())) for model, values in logs.items()},
        )
        return Finding(
            self.id,
            scalars=[
                Scalar("log10_p", "Forget quality: log10 p", "log10 p", "low", 2),
                Scalar("ks_distance", "KS distance to the oracle", "share", "high"),
            ],
            estimates=estimates,
            per_example={m: {i: {"log_truth_ratio": v} for i, v in values.items()} for m, values in logs.items()},
            plots=[plot],
            attempted={"n": {m: len(v) for m, v in logs.items()}, "oracle": oracle, "mean": self.config.mean},
        )


def _cumulative(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(value, (k + 1) / len(values)) for k, value in enumerate(sorted(values))]
