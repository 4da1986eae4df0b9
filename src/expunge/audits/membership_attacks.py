"""What every membership attack reports: AUC, true positive rates where false ones are rare, and the ROC curve.

Scores are higher for members: the forget set is told from the holdout set.

Source: Carlini et al. 2022, Membership Inference Attacks From First Principles (why low false positive rates count).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from expunge.audits.base import Estimate, Finding, Plot, Scalar
from expunge.audits.observations import Observations
from expunge.audits.roc import auc_interval, roc_curve, tpr_at_fpr
from expunge.audits.values import Values

RATES = (0.01, 0.001)


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
