"""Which statistics tell two models apart: the models against each other, not each against never having known.

Two models of which one is shown to leak and the other is left open may be the same or worlds apart, so what each is
called says little about the two. Here their values are paired example by example and tested like a verdict's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge.audits.base import Evidence
from expunge.verdict.comparison import Comparison, compare, oracles
from expunge.verdict.decision import p_from_seeds
from expunge.verdict.equivalence import Difference, holm, p_different, paired
from expunge.verdict.noise import Margin, SeedNoise, Units
from expunge.verdict.settings import VerdictSettings


@dataclass(frozen=True)
class PairTest:
    """Two models on one statistic.

    Attributes:
        first, second: the models.
        audit, statistic: what was asked.
        means: of the first and of the second, in the statistic's own unit.
        difference, low, high: first minus second, with its unadjusted interval.
        margin: how large a difference counts as none.
        n, units: how many independent units, and whether they are examples or groups.
        p: of "no different", corrected for all statistics of the pair.
        apart: whether the difference exceeds the margin and what training seeds explain.
    """

    first: str
    second: str
    audit: str
    statistic: str
    means: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    margin: float
    n: int
    units: str
    p: float
    apart: bool


def tell_apart(models: Mapping[str, Sequence[Evidence]], settings: VerdictSettings | None = None) -> list[PairTest]:
    """Test every two models against each other on every statistic about the forgotten data that both have.

    The margin is the verdict's, a share of the gap between the original and never having known, or what seed noise
    needs; it is wider here, as neither side is a mean of several models. A difference counts where it exceeds the
    margin and seeds do not explain it, after Holm's correction over all tests of the pair: as a verdict is about one
    model, this is about one pair, however many others are compared beside it. Left out is what was not measured on the
    same examples, and what does not tell the original from a model that never knew.

    Args:
        models: name -> what its audits handed to the verdict; the models answer the same request.
        settings: error rate and margins; those of the verdict by default.

    Returns:
        One test per pair and statistic, pair by pair in the order given.

    Source: as for ``decide``.
    """
    settings = settings or VerdictSettings()
    known = {name: _usable(evidence, settings) for name, evidence in models.items()}
    found: list[PairTest] = []
    for a, b in itertools.combinations(models, 2):
        tests = [
            _test(a, b, one, known[b][key], settings)
            for key, one in sorted(known[a].items())
            if key in known[b]
            and one.evidence.values["unlearned"].keys() == known[b][key].evidence.values["unlearned"].keys()
        ]
        corrected = holm([test.p for test in tests])
        found += [replace(test, p=p, apart=p <= settings.alpha) for test, p in zip(tests, corrected, strict=True)]
    return found


def _usable(evidence: Sequence[Evidence], settings: VerdictSettings) -> dict[tuple[str, str], Comparison]:
    every = [compare(one, settings) for one in evidence if one.about == "forget"]
    return {
        (c.evidence.audit, c.evidence.statistic): c for c in every if not c.blocked and not c.uninformative and c.gap
    }


def _test(a: str, b: str, one: Comparison, other: Comparison, settings: VerdictSettings) -> PairTest:
    evidence = one.evidence
    units = Units(list(evidence.values["unlearned"]), evidence.groups, settings.minimum_groups)
    first, second = (units(c.evidence.values["unlearned"]) for c in (one, other))
    # Where the two were not held against the same models, the wider margin is the safe one.
    margin = max((_margin(c, settings) for c in (one, other)), key=lambda margin: margin.value)
    gap = max(abs(c.gap or 0.0) for c in (one, other))
    difference: Difference = paired(first - second, gap)
    low, high = difference.interval(settings.level) or (None, None)
    p = max(p_different(difference, margin.value), p_from_seeds(difference.value, margin))
    return PairTest(
        a, b, evidence.audit, evidence.statistic, (float(first.mean()), float(second.mean())), difference.value,
        low, high, margin.value, units.n, units.kind, p, False,
    )  # fmt: skip


def _margin(c: Comparison, settings: VerdictSettings) -> Margin:
    """Return the margin between two single models, each with the seed noise of one."""
    assert c.margin is not None
    assert c.gap is not None
    names = oracles(c.evidence.values)
    if not names:
        return c.margin
    units = Units(list(c.evidence.values["unlearned"]), c.evidence.groups, settings.minimum_groups)
    each = np.stack([units(c.evidence.values[name]) for name in names])
    noise = replace(SeedNoise.of(c.evidence, names, each, settings), oracles=1)
    share = settings.margin_fraction * abs(c.gap)
    return noise.margin(share, "", settings, abs(c.gap))
