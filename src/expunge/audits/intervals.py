"""Point estimates with their uncertainty: means, paired differences, shares and functions of several means.

Every function is deterministic given its seed, takes no global randomness, and refuses NaN and infinity: a number that
could not be computed must never be averaged into one that looks computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from expunge.audits.base import Estimate
from expunge.errors import BadInput, Problem

Array = NDArray[np.float64]

SHARE = (0.0, 1.0)  # bounds of shares and probabilities
MIN_GROUPS = 8  # with fewer groups a cluster bootstrap undercovers badly
NORMAL_THEORY_FROM = 2000  # units from which bootstrap and t interval agree to the printed digits
_CACHED_UP_TO = 1000  # units; many statistics of one report share their resamples
_CHUNK = 1_000_000  # resampled counts held in memory at a time where they are not shared


def mean_interval(
    values: ArrayLike,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Mean with a studentised bootstrap interval, clipped to the range of the data or to ``bounds``.

    The studentised interval holds its coverage on skewed values (token likelihoods, ROUGE with many zeros) from about
    8 units on, where percentile and t intervals fall to 85-90 %; below 8 units it is widened to the t interval where
    that is wider. Values that are all 0 or 1 get the exact Clopper-Pearson interval instead, unless
    ``bounds`` allow others. Where all or nearly all values are the same, resamples do not say how far the mean may be:
    the range of the data bounds it, or with ``bounds`` the exact limit of how many values may be others (for groups,
    where all are of one size); and where others might lie on both sides, the interval holds the common value unless
    more of them differ than a sign test needs to reject (6 at 95 %).

    Args:
        values: [n] one number per example.
        groups: [n] group of each example; groups are resampled instead of examples when there are at least 8 of them.
        level: coverage.
        seed: of the resampling.
        resamples: how many.
        bounds: smallest and largest value that an example can have, such as (0, 1); None where that is not known.

    Returns:
        The estimate; ``n`` counts groups where groups were resampled. No interval at n = 1, no value at n = 0.

    Raises:
        BadInput: a value is NaN or infinite, or ``groups`` has another length.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 12 (bootstrap-t).
    """
    x = finite(values, "values")
    if groups is not None and len(groups) != x.size:
        raise BadInput(Problem("groups", f"has {len(groups)} entries for {x.size} values", "give one group per value"))
    return _mean(x, groups, level, seed, resamples, bounds, bounds in (None, SHARE))


def paired_difference(
    values_a: Mapping[str, float],
    values_b: Mapping[str, float],
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Mean of ``a - b`` over examples, paired by id and never by position.

    Args:
        values_a, values_b: example id -> value; the same ids on both sides, in any order.
        groups: example id -> group, for every id or None.
        level, seed, resamples: as in ``mean_interval``.
        bounds: of a difference, (-1, 1) for shares and probabilities; None where they are not known.

    Returns:
        The estimate of the mean difference.

    Raises:
        BadInput: ids that are on one side only (named), an id without a group, or a value that is NaN or infinite.
    """
    problems = []
    for name, here, there in (("values_a", values_a, values_b), ("values_b", values_b, values_a)):
        missing = sorted(there.keys() - here.keys())
        if missing:
            problems.append(Problem(name, f"lacks {_name(missing)}", "measure both models on the same examples"))
    ids = sorted(values_a.keys() & values_b.keys())
    if groups and (without := [i for i in ids if i not in groups]):
        problems.append(Problem("groups", f"lacks {_name(without)}", "give every example a group, or no groups"))
    if problems:
        raise BadInput(problems)
    a = finite([values_a[i] for i in ids], "values_a", ids)
    b = finite([values_b[i] for i in ids], "values_b", ids)
    # Differences that happen to be all 0 or 1 are no proportion: others could be negative.
    return _mean(a - b, [groups[i] for i in ids] if groups else None, level, seed, resamples, bounds, False)


def statistic_interval(
    samples: Mapping[str, Mapping[str, float] | Sequence[float]],
    function: Callable[[Mapping[str, Array]], float],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Estimate:
    """A function of several samples with a joint bootstrap interval.

    Samples given as mappings with the same ids are resampled together, so numbers measured on the same examples stay
    paired; all others are resampled independently. The percentiles are widened for the smallest sample (expanded
    percentile interval; Hesterberg 2015, "What Teachers Should Know About the Bootstrap").

    Args:
        samples: name -> (example id -> value), or name -> [n] values.
        function: takes name -> [n] values and returns a number.
        level, seed, resamples: as in ``mean_interval``.

    Returns:
        The estimate; ``n`` is the size of the smallest sample. No value when a sample is empty (the note names it).

    Raises:
        BadInput: a value is NaN or infinite.
    """
    check_level(level)
    arrays: dict[str, Array] = {}
    keys: dict[str, object] = {}
    for name, sample in samples.items():
        if isinstance(sample, Mapping):
            ids = sorted(sample)
            arrays[name], keys[name] = finite([sample[i] for i in ids], name, ids), tuple(ids)
        else:
            arrays[name], keys[name] = finite(sample, name), name
    empty = [name for name, array in arrays.items() if array.size == 0]
    if empty or not arrays:
        return Estimate(None, level=level, note=f"no examples for {', '.join(empty) or 'any part'}")
    value, n = float(function(arrays)), min(array.size for array in arrays.values())
    if n == 1:
        return Estimate(value, n=1, level=level, note="a part has one example: no interval")
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    sizes = {key: arrays[name].size for name, key in keys.items()}
    for r in range(resamples):
        index = {key: rng.integers(0, size, size) for key, size in sizes.items()}
        draws[r] = function({name: array[index[keys[name]]] for name, array in arrays.items()})
    tail = special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 - level) / 2))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), n, level)


def harmonic_mean(
    samples: Mapping[str, Mapping[str, float] | Sequence[float]],
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Estimate:
    """Harmonic mean of the samples' means (TOFU's model utility) with a joint bootstrap interval; 0 if any mean is 0.

    Args:
        samples: as in ``statistic_interval``; values must not be negative.
        level, seed, resamples: as in ``mean_interval``.

    Raises:
        BadInput: a value is negative, NaN or infinite.
    """

    def function(parts: Mapping[str, Array]) -> float:
        means = np.array([part.mean() for part in parts.values()])
        if means.min() < 0:
            raise BadInput(Problem("samples", "have a negative mean", "a harmonic mean needs non-negative numbers"))
        return float(means.size / np.sum(1 / means)) if means.min() > 0 else 0.0

    return statistic_interval(samples, function, level, seed, resamples)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def finite(values: ArrayLike, where: str, ids: Sequence[str] | None = None) -> Array:
    """Return [n] float64 values.

    Args:
        values: n numbers.
        where: what they are called in a problem.
        ids: of the values, for the problem.

    Raises:
        BadInput: one is NaN or infinite.
    """
    array: Array = np.asarray(values, dtype=np.float64).ravel()
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        which = _name([ids[int(i)] for i in bad]) if ids else f"position {', '.join(map(str, bad[:3]))}"
        raise BadInput(
            Problem(where, f"is NaN or infinite at {which}", "find out why before averaging: it is not data")
        )
    return array


def _name(ids: Sequence[str]) -> str:
    return f"{len(ids)} id(s): {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"


def check_level(level: float) -> None:
    """Refuse a coverage that is none.

    Raises:
        BadInput: it is not in (0, 1).
    """
    if not 0 < level < 1:
        raise BadInput(Problem("level", f"is {level}", "give a coverage in (0, 1), such as 0.95"))


def _mean(
    x: Array,
    groups: Sequence[str] | None,
    level: float,
    seed: int,
    resamples: int,
    bounds: tuple[float, float] | None,
    proportion: bool,
) -> Estimate:
    """``mean_interval`` of finite values; ``proportion`` says whether values all 0 or 1 are one."""
    check_level(level)
    if x.size == 0:
        return Estimate(None, level=level, note="no examples")
    sums, sizes, note = clusters(x, groups)
    value, n = float(x.mean()), sums.size
    if n == 1:
        return Estimate(value, n=1, level=level, note=note or "one example: no interval")
    if proportion and np.all(sizes == 1) and np.all((x == 0) | (x == 1)):
        low, high = clopper_pearson(int(x.sum()), n, level)
        return Estimate(value, low, high, n, level, note)
    if np.ptp(sums / sizes) == 0:
        if bounds is not None and np.ptp(sizes) == 0:
            return Estimate(value, *_few_others(sums / sizes, bounds, level), n, level, note)
        constant = f"all {n} values are equal: the interval does not say what other examples would give"
        return Estimate(value, value, value, n, level, "; ".join(filter(None, (note, constant))))
    low, high = _studentised(sums, sizes, level, seed, resamples, bounds)
    usual, others = _commonest(sums / sizes)
    if others < n / 2 and 2 * 0.5**others > 1 - level and (bounds is None or bounds[0] < usual < bounds[1]):
        # So few values on one side of the rest are no evidence of a side: a sign test could not reject.
        low, high = min(low, usual), max(high, usual)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value, min(low, value), max(high, value), n, level, note)


def clusters(x: Array, groups: Sequence[str] | None) -> tuple[Array, Array, str]:
    """Sums and sizes of the resampled units, and a note where groups were too few to be units."""
    if groups is None:
        return x, np.ones_like(x), ""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if names.size < MIN_GROUPS:
        return x, np.ones_like(x), f"only {names.size} group(s): examples taken as independent"
    return np.bincount(index, x).astype(np.float64), np.bincount(index).astype(np.float64), ""


def ratio_variance(sums: Array, sizes: Array) -> Array:
    """[r] variance of sum/size over [r, units], linearised; for units of size 1 it is the usual s^2/n."""
    units, total = sums.shape[1], sizes.sum(1)
    residual = sums - (sums.sum(1) / total)[:, None] * sizes
    return np.asarray(units / (units - 1) * (residual**2).sum(1) / total**2)


def _studentised(
    sums: Array, sizes: Array, level: float, seed: int, resamples: int, bounds: tuple[float, float] | None
) -> tuple[float, float]:
    n = sums.size
    value, error = sums.sum() / sizes.sum(), np.sqrt(ratio_variance(sums[None], sizes[None])[0])
    tail = (1 - level) / 2
    t = special.stdtrit(n - 1, 1 - tail)
    if n >= NORMAL_THEORY_FROM:
        return value - t * error, value + t * error
    # centred first, so that the sums of squares below do not cancel
    centred = sums - value * sizes
    columns = np.stack([centred, sizes, centred**2, centred * sizes, sizes**2], axis=1)
    ratios = []
    for counts in _resampled_counts(n, resamples, seed):
        s, w, ss, sw, ww = (counts @ columns).T
        deviation = s / w
        spread = ss - 2 * deviation * sw + deviation**2 * ww
        scale = np.sqrt(np.maximum(n / (n - 1) * spread, 0.0)) / w
        # a resample without spread says nothing finite about t; the clip to the data's range bounds what it does
        flat = scale <= 1e-7 * error
        ratios.append(np.where(flat, np.sign(deviation) * 1e12, deviation / np.where(flat, 1.0, scale)))
    lower, upper = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    low, high = value - upper * error, value - lower * error
    units = sums / sizes
    limits = (float(units.min()), float(units.max()))
    if bounds is not None and np.ptp(sizes) == 0:
        limits = _few_others(units, bounds, level)
    low, high = max(low, limits[0]), min(high, limits[1])
    if n < 8:
        low, high = min(low, value - t * error), max(high, value + t * error)
    return float(low), float(high)


def _commonest(values: Array) -> tuple[float, int]:
    """Return the commonest value, and how many are others."""
    known, counts = np.unique(values, return_counts=True)
    return float(known[counts.argmax()]), int(values.size - counts.max())


def _few_others(values: Array, bounds: tuple[float, float], level: float) -> tuple[float, float]:
    """Limits of a mean of which only the share of values other than the commonest is in doubt."""
    usual, others = _commonest(values)
    most = clopper_pearson(others, values.size, level)[1]
    return usual + most * (bounds[0] - usual), usual + most * (bounds[1] - usual)


def _resampled_counts(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks [rows, n] of how often each unit is drawn; the same n and seed give the same draws."""
    if n <= _CACHED_UP_TO:
        yield _shared_counts(n, resamples, seed)
        return
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        yield _counts(rng, min(rows, resamples - start), n)


@lru_cache(maxsize=4)
def _shared_counts(n: int, resamples: int, seed: int) -> Array:
    counts = _counts(np.random.default_rng(seed), resamples, n)
    counts.flags.writeable = False
    return counts


def _counts(rng: np.random.Generator, rows: int, n: int) -> Array:
    index = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(index.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
