"""The tests under the verdict: equivalence, difference beyond a margin, Holm's correction and the sample size needed.

All take a ``Difference`` (an estimate with its standard error) and a margin, and work on Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

LARGEST_N = 1_000_000  # a larger need is no practical answer


@dataclass(frozen=True)
class Difference:
    """A mean difference with its uncertainty.

    Attributes:
        value: the difference.
        error: its standard error, the floor included.
        df: degrees of freedom of the error; 0 when one unit leaves it unknown.
        n: independent units (of the smaller side where there are two).
        floor: the error is never taken below ``floor / (n + 1)``: one unit in n + 1 may hold a whole ``floor`` unseen.
    """

    value: float
    error: float
    df: float
    n: int
    floor: float = 0.0

    def interval(self, level: float) -> tuple[float, float] | None:
        """Two-sided t interval, or None where one unit leaves no error."""
        if self.df <= 0:
            return None
        half = float(special.stdtrit(self.df, (1 + level) / 2)) * self.error
        return self.value - half, self.value + half


def paired(differences: ArrayLike, floor: float = 0.0) -> Difference:
    """Mean of per-unit differences [n]."""
    d = np.asarray(differences, dtype=np.float64)
    error = float(d.std(ddof=1)) / math.sqrt(d.size) if d.size > 1 else math.inf
    return Difference(float(d.mean()), max(error, floor / (d.size + 1)), d.size - 1, d.size, floor)


def two_sample(a: ArrayLike, b: ArrayLike, floor: float = 0.0) -> Difference:
    """Mean of a [n] minus mean of b [m], with Welch's error and degrees of freedom."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = min(x.size, y.size)
    if n < 2:
        return Difference(float(x.mean() - y.mean()), math.inf, 0, n, floor)
    vx, vy = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    spread = vx**2 / (x.size - 1) + vy**2 / (y.size - 1)
    df = (vx + vy) ** 2 / spread if spread > 0 else n - 1
    return Difference(float(x.mean() - y.mean()), max(math.sqrt(vx + vy), floor / (n + 1)), df, n, floor)


def p_above(difference: Difference, bound: float) -> float:
    """p of H0 "the true difference is at most ``bound``" against "it is above"."""
    if difference.df <= 0:
        return 1.0
    distance = difference.value - bound
    if difference.error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(special.stdtr(difference.df, -distance / difference.error))


def p_below(difference: Difference, bound: float) -> float:
    """p of H0 "the true difference is at least ``bound``" against "it is below"."""
    mirrored = Difference(-difference.value, difference.error, difference.df, difference.n)
    return p_above(mirrored, -bound)


def p_equivalent(difference: Difference, margin: float) -> float:
    """p of H0 "the true difference is at least the margin, either way": two one-sided tests (Schuirmann 1987)."""
    return max(p_above(difference, -margin), p_below(difference, margin))


def p_different(difference: Difference, margin: float) -> float:
    """p of H0 "the true difference is within the margin", two-sided; at margin 0 it is the usual t test.

    The sum of both tails at the edge of the margin bounds the error for every true difference within it
    (minimum-effect test, Murphy & Myors 1999).
    """
    size = Difference(abs(difference.value), difference.error, difference.df, difference.n)
    return min(1.0, p_above(size, margin) + p_above(size, -margin))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted: NDArray[np.float64] = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * (p.size - np.arange(p.size))))
    return [float(x) for x in adjusted]


def needed_n(
    difference: Difference, margin: float, alpha: float, power: float, *, one_sided: bool = False
) -> int | None:
    """Units needed to show equivalence if the observed difference and spread are the true ones.

    Args:
        difference: as observed.
        margin: of equivalence; with ``one_sided`` only ``difference > -margin`` is to be shown.
        alpha: level of each one-sided test, correction for multiplicity included.
        power: chance of success wanted.
        one_sided: non-inferiority instead of equivalence.

    Returns:
        The smallest n, or None when no n up to a million is enough (the difference is at the margin or beyond).
    """
    room_low = margin + difference.value
    room_high = math.inf if one_sided else margin - difference.value
    if min(room_low, room_high) <= 0 or difference.df <= 0:
        return None

    def reached(error: float, t: float) -> bool:
        return bool(special.ndtr(room_low / error - t) + special.ndtr(room_high / error - t) - 1 >= power)

    return _smallest(difference, alpha, reached)


def needed_n_to_differ(difference: Difference, margin: float, alpha: float, power: float) -> int | None:
    """Units needed to show that the difference lies beyond the margin, as ``needed_n``; None if it is seen within."""
    room = abs(difference.value) - margin
    if room <= 0 or difference.df <= 0:
        return None
    return _smallest(difference, alpha, lambda error, t: bool(special.ndtr(room / error - t) >= power))


def _smallest(difference: Difference, alpha: float, reached: Callable[[float, float], bool]) -> int | None:
    """Smallest n at which the test with its error and t quantile reaches its power."""
    spread = difference.error * math.sqrt(difference.n)

    def enough(n: int) -> bool:
        error = max(spread / math.sqrt(n), difference.floor / (n + 1))
        return error == 0 or reached(
            error, float(special.stdtrit(max(1.0, difference.df * n / difference.n), 1 - alpha))
        )

    high = 2
    while not enough(high):
        high *= 2
        if high > LARGEST_N:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
