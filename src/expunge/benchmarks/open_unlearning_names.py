"""Which of our audits measures what open-unlearning calls by another name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.audits.base import Estimate, Finding


@dataclass(frozen=True)
class Ours:
    """Where our number of one of their metrics is.

    Attributes:
        audit, scalar: finding and number in it.
        statistic: per-example value behind it.
        role: example set of ours.
    """

    audit: str
    scalar: str
    statistic: str
    role: str


MEANS = {
    "forget_Q_A_Prob": Ours("probability", "forget_probability", "probability", "forget"),
    "forget_Q_A_ROUGE": Ours("rouge", "forget_rouge_recall", "rouge_recall", "forget"),
    "forget_truth_ratio": Ours("truth_ratio", "forget_truth_ratio", "truth_ratio_score", "forget"),
    "extraction_strength": Ours("extraction_strength", "forget_extraction_strength", "extraction_strength", "forget"),
    "exact_memorization": Ours("exact_memorization", "forget_exact_memorization", "exact_memorization", "forget"),
    **{
        f"{short}_{name}": Ours("model_utility", f"{role}_{measure}", measure, role)
        for short, role in (("retain", "retain"), ("ra", "real_authors"), ("wf", "world_facts"))
        for name, measure in (
            ("Q_A_Prob" if short == "retain" else "Q_A_Prob_normalised", "probability"),
            ("Q_A_ROUGE", "rouge_recall"),
            ("Truth_Ratio", "truth_ratio"),
        )
    },
}
# Membership attacks.
AREAS = {
    "mia_loss": ("membership", "loss_auc"), "mia_zlib": ("membership", "zlib_auc"),
    "mia_min_k": ("membership", "min_k_auc"), "mia_min_k_plus_plus": ("membership", "min_k_plus_plus_auc"),
    "mia_reference": ("membership", "reference_auc"), "mia_gradnorm": ("gradient_norm", "gradient_norm_auc"),
}  # fmt: skip
OTHERS = {
    "forget_quality": ("forget_quality", "log10_p"), "model_utility": ("model_utility", "utility"),
    "privleak": ("privleak", "privleak"), **AREAS,
}  # fmt: skip


def audits_of(metrics: Sequence[str]) -> list[str]:
    """Return the audits that measure these metrics, each once."""
    found = [MEANS[m].audit if m in MEANS else OTHERS[m][0] for m in metrics if m in MEANS or m in OTHERS]
    return list(dict.fromkeys(found))


def our_number(findings: Mapping[str, Finding], metric: str, model: str = "unlearned") -> Estimate:
    """Return our number of one of their metrics; its note says why where there is none."""
    if metric in MEANS:
        audit, scalar = MEANS[metric].audit, MEANS[metric].scalar
    else:
        audit, scalar = OTHERS.get(metric, ("", ""))
    finding = findings.get(audit)
    if finding is None or finding.status != "measured":
        return Estimate(None, note=finding.note if finding else "a part of other metrics; no audit of its own")
    found = finding.estimates.get(model, {}).get(scalar, Estimate(None, note="not measured"))
    if metric == "forget_quality" and found.value is not None:
        return Estimate(10.0**found.value, n=found.n, note=found.note)
    return found
