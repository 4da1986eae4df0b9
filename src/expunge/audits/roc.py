"""ROC quantities with their uncertainty: the area, the points of the curve, and the rate at few false positives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.audits.base import Estimate
from expunge.audits.intervals import Array, check_level, clopper_pearson, clusters, finite, ratio_variance
from expunge.errors import BadInput, Problem


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """P(member score > non-member score), ties counted half: the area under the ROC curve.

    Args:
        members: [m] scores, higher = more likely a member.
        non_members: [n] scores.

    Raises:
        BadInput: one side is empty, or a score is NaN or infinite.
    """
    return float(_placements(*_scores(members, non_members))[0].mean())


def auc_interval(
    members: ArrayLike,
    non_members: ArrayLike,
    level: float = 0.95,
    member_groups: Sequence[str] | None = None,
    non_member_groups: Sequence[str] | None = None,
) -> Estimate:
    """AUC with DeLong's variance on the logit scale; at the ends, and not narrower anywhere, Newcombe's score interval.

    DeLong's variance vanishes at AUC 0 and 1 and is too small near them; the score interval (Newcombe 2006, method 5)
    stays honest there. With at least 8 groups on a side that side's variance is taken between groups (Obuchowski 1997).

    Args:
        members, non_members: as in ``auc``.
        level: coverage.
        member_groups, non_member_groups: group of each score.

    Returns:
        The estimate; ``n`` is the smaller side, in units. No value when a side is empty.

    Raises:
        BadInput: a score is NaN or infinite.

    Source: DeLong, DeLong & Clarke-Pearson (1988); ties as in Sun & Xu (2014).
    """
    check_level(level)
    m_scores, n_scores = finite(members, "members"), finite(non_members, "non_members")
    if not m_scores.size or not n_scores.size:
        return Estimate(None, level=level, note="no members" if not m_scores.size else "no non-members")
    placed_m, placed_n = _placements(m_scores, n_scores)
    value = float(placed_m.mean())
    parts = [clusters(placed_m, member_groups), clusters(placed_n, non_member_groups)]
    n = min(sums.size for sums, _, _ in parts)
    note = "; ".join(dict.fromkeys(note for _, _, note in parts if note))
    if n == 1:
        return Estimate(value, n=1, level=level, note=note or "one score on a side: no interval")
    z = -special.ndtri((1 - level) / 2)
    units_m, units_n = parts[0][0].size, parts[1][0].size
    low, high = _newcombe(value, units_m, units_n, z)
    variance = sum(ratio_variance(sums[None], sizes[None])[0] for sums, sizes, _ in parts)
    if 0 < value < 1 and variance > 0:
        logit, width = special.logit(value), z * np.sqrt(variance) / (value * (1 - value))
        low = min(low, float(special.expit(logit - width)))
        high = max(high, float(special.expit(logit + width)))
    return Estimate(value, low, high, n, level, note)


def roc_curve(members: ArrayLike, non_members: ArrayLike) -> tuple[Array, Array]:
    """Points of the ROC curve, one per distinct score, from (0, 0) to (1, 1).

    Returns:
        False positive rates and true positive rates, both [k] and non-decreasing.

    Raises:
        BadInput: one side is empty, or a score is NaN or infinite.
    """
    m, n = _scores(members, non_members)
    thresholds = np.unique(np.concatenate([m, n]))[::-1]
    # a score is called a member at or above the threshold
    tpr = 1 - np.searchsorted(np.sort(m), thresholds, side="left") / m.size
    fpr = 1 - np.searchsorted(np.sort(n), thresholds, side="left") / n.size
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float, level: float = 0.95) -> Estimate:
    """Share of members found when at most a share ``fpr`` of the non-members is called a member.

    The threshold is the smallest score that lets at most ``floor(fpr * n)`` non-members lie strictly above it; a member
    must lie strictly above it too. The interval is Clopper-Pearson over the members and takes the threshold as given.

    Args:
        members, non_members: as in ``auc``.
        fpr: allowed false positive rate, in [0, 1).
        level: coverage.

    Returns:
        The estimate; the note says what the smallest resolvable rate is where the non-members are too few for ``fpr``.

    Raises:
        BadInput: a score is NaN or infinite, or ``fpr`` is out of range.
    """
    check_level(level)
    if not 0 <= fpr < 1:
        raise BadInput(Problem("fpr", f"is {fpr}", "give a rate in [0, 1)"))
    m, n = finite(members, "members"), finite(non_members, "non_members")
    if not m.size or not n.size:
        return Estimate(None, level=level, note="no members" if not m.size else "no non-members")
    allowed = int(np.floor(fpr * n.size + 1e-9))
    threshold = np.sort(n)[::-1][allowed]
    found = int(np.sum(m > threshold))
    low, high = clopper_pearson(found, m.size, level)
    note = ""
    if fpr > 0 and allowed == 0:
        note = f"{n.size} non-members resolve no false positive rate below {1 / n.size:.2g}: at zero false positives"
    return Estimate(found / m.size, low, high, m.size, level, note)


def _scores(members: ArrayLike, non_members: ArrayLike) -> tuple[Array, Array]:
    m, n = finite(members, "members"), finite(non_members, "non_members")
    for name, side in (("members", m), ("non_members", n)):
        if not side.size:
            raise BadInput(Problem(name, "is empty", "an ROC curve needs scores on both sides"))
    return m, n


def _placements(m: Array, n: Array) -> tuple[Array, Array]:
    """For each member the share of non-members below it, for each non-member the share of members above it."""
    ordered_m, ordered_n = np.sort(m), np.sort(n)
    below = np.searchsorted(ordered_n, m, "left") + np.searchsorted(ordered_n, m, "right")
    above = 2 * m.size - np.searchsorted(ordered_m, n, "left") - np.searchsorted(ordered_m, n, "right")
    return below / (2 * n.size), above / (2 * m.size)


def _newcombe(value: float, m: int, n: int, z: float) -> tuple[float, float]:
    """Score interval of an AUC: the values that lie within z of their own standard error (Newcombe 2006, method 5)."""
    half = (m + n) / 2
    grid = np.linspace(0, 1, 4001)
    factor = (2 * half - 1) - (3 * half - 3) / ((2 - grid) * (1 + grid))
    inside = grid[(value - grid) ** 2 <= z**2 * grid * (1 - grid) / (m * n) * factor]
    # each end is exact to the grid step; rounding outwards keeps the coverage
    step = float(grid[1])
    low = value if inside.size == 0 else max(0.0, float(inside.min()) - step)
    high = value if inside.size == 0 else min(1.0, float(inside.max()) + step)
    return (0.0 if value == 0 else min(low, value)), (1.0 if value == 1 else max(high, value))
