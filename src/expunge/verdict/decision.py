"""The verdict: from many pieces of evidence to one answer with a known error rate.

The yardstick is a model that never knew, and the test is two-sided: knowing more than it is a leak, and doing worse
than ignorance explains is suppression, which betrays that there was something to hide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from scipy import special

from expunge.audits.base import Evidence
from expunge.errors import BadInput, Problem
from expunge.verdict import wording
from expunge.verdict.comparison import Comparison, compare
from expunge.verdict.equivalence import (
    Difference,
    holm,
    needed_n,
    needed_n_to_differ,
    p_above,
    p_below,
    p_different,
    p_equivalent,
)
from expunge.verdict.families import by_family, decisive
from expunge.verdict.noise import Margin
from expunge.verdict.result import LEVELS, Result, Retained, Row, Verdict
from expunge.verdict.settings import VerdictSettings


def decide(
    evidence: Sequence[Evidence],
    *,
    removal_level: str = "unknown",
    crashed: Sequence[str] = (),
    settings: VerdictSettings | None = None,
) -> Verdict:
    """Judge whether the data is gone and whether the rest was kept.

    Args:
        evidence: per-example statistics of the unlearned model and of what it is compared with.
        removal_level: "guard", "adapter", "approximate", "exact" or "unknown". The weights under a guard or an adapter
            still hold the data, so these are never "removed".
        crashed: audits that were asked and broke down. What they would have shown is not known, and it may be that the
            model is what broke: nothing is "removed" or "kept" beside them.
        settings: error rates and margins.

    Returns:
        The verdict. "not removed" if any statistic lies outside its margin after Holm's correction; "removed" if every
        one that can tell is shown to lie within; otherwise "inconclusive".

    Raises:
        BadInput: a removal level that does not exist.

    Source: Schuirmann (1987) for the two one-sided tests, Holm (1979) for the correction; docs/verdict.md for margins.
    """
    if removal_level not in LEVELS:
        raise BadInput(Problem("removal_level", f"'{removal_level}' is not one", f"use one of {', '.join(LEVELS)}"))
    settings = settings or VerdictSettings()
    forget = [compare(e, settings) for e in evidence if e.about == "forget"]
    ignorance = {c.evidence.statistic: c.ignorance for c in forget if c.ignorance is not None}
    retain = [compare(e, settings, ignorance.get(e.statistic)) for e in evidence if e.about == "retain"]
    retain_rows = _judge(retain, settings)
    intact = {row.result for row in retain_rows} & {"kept", "damaged"} == {"kept"}
    forget_rows = _judge(forget, settings, intact)
    by_tests, reasons = _conclude(forget_rows, forget, settings)
    if crashed:
        reasons.insert(0, f"{wording.broken_down(crashed)}; repair what is wrong, or leave them out")
        by_tests = "inconclusive" if by_tests == "removed" else by_tests
    result: Result = by_tests
    if removal_level in ("guard", "adapter"):
        result = "not removed"
        reasons.insert(0, wording.held_by_weights(removal_level))
        reasons.insert(1, f"the tests alone, with the {removal_level} in place, say: {by_tests}")
    retained = _retained(retain_rows)
    if crashed and retained == "kept":
        retained = "inconclusive"
    clearest = decisive(forget_rows)
    verdict = Verdict(
        result=result,
        by_tests=by_tests,
        sentence="",
        removal_level=removal_level,
        need_n=_needed(forget_rows) if result == "inconclusive" else None,
        retained=retained,
        retained_need_n=_needed(retain_rows) if retained == "inconclusive" else None,
        rows=(*forget_rows, *retain_rows),
        families=by_family(forget_rows),
        decided_by=clearest.statistic if clearest else "",
        crashed=tuple(crashed),
        reasons=tuple(dict.fromkeys(reasons)),
        settings=settings,
    )
    return replace(verdict, sentence=wording.sentence(verdict), retained_sentence=wording.retained_sentence(verdict))


def _judge(comparisons: Sequence[Comparison], settings: VerdictSettings, intact: bool = False) -> list[Row]:
    """Test all statistics about one set, with Holm's correction over each of the two families.

    Args:
        comparisons: all about that set.
        settings: error rates.
        intact: whether the model is shown to keep what had to stay, and nowhere to have lost it.
    """
    tested = [c for c in comparisons if not c.uninformative]
    # a statistic drowned in seed noise cannot show equivalence, and must not stand in the way of those that can
    able = [c for c in tested if not (c.margin and c.margin.drowned)]
    raw = {id(c): _p_values(c, settings, intact) for c in tested}
    different = dict(zip(raw, holm([raw[id(c)][1] for c in tested]), strict=True))
    equivalent = dict(zip(map(id, able), holm([raw[id(c)][0] for c in able]), strict=True))
    rows = []
    for c in comparisons:
        row = _describe(c, settings)
        if c.blocked or c.uninformative:
            note = c.blocked or c.uninformative
            rows.append(replace(row, result="not measured" if c.blocked else "cannot tell", note=_join(note, *c.notes)))
            continue
        p_same, p_other = equivalent.get(id(c)), different[id(c)]
        row = replace(row, p_equivalent=p_same, p_different=p_other, p_different_raw=raw[id(c)][1])
        if p_same is not None:
            row = replace(row, p_equivalent_raw=raw[id(c)][0])
        if intact and _p_alike(c) > settings.alpha >= _p_values(c, settings, False)[1]:
            c = replace(c, notes=(_ALIKE, *c.notes))
        rows.append(_decide_row(row, c, p_same, p_other, len(tested), settings))
    return rows


_ALIKE = (
    "worse than never having known, and as much worse on the holdout set, which no model saw, while what had to stay "
    "is kept: another training seed does that too, so it is not held against the model"
)


def _p_alike(c: Comparison) -> float:
    """p of "it falls short of never having known no more on the forget set than on examples that nobody saw".

    A training seed that meets the unknown in a way of its own does so on both sets; suppression singles out what was to
    be forgotten, or breaks what was to stay as well. 0 where that is no explanation: a leak, or no holdout set.
    """
    if c.difference is None or c.margin is None or c.beyond_unseen is None or c.difference.value >= 0:
        return 0.0
    return p_below(c.beyond_unseen, -c.margin.value)


def _p_values(c: Comparison, settings: VerdictSettings, intact: bool) -> tuple[float, float]:
    """p of "no different" and of "different" for one statistic, before correction; 1 and 1 if nothing was measured."""
    if c.blocked or c.difference is None or c.margin is None:
        return 1.0, 1.0
    difference, margin = c.difference, c.margin.value
    if c.evidence.about == "retain":
        same, other = p_above(difference, -margin), _p_worse(c, difference)
    else:
        same = p_equivalent(difference, margin)
        other = max(p_different(difference, margin), p_from_seeds(difference.value, c.margin))
        other = max(other, _p_alike(c) if intact else 0.0)
        if c.control_shift is not None:
            # a broken model treats everything as unseen: the holdout must also still be read as the original reads it
            same = max(same, p_above(c.control_shift, -margin))
            other = min(1.0, 2 * min(other, _p_worse(c, c.control_shift)))
    if c.n < settings.minimum_n or c.cannot_show_removal:
        same = 1.0
    return same, other


def p_from_seeds(value: float, margin: Margin) -> float:
    """Two-sided p of H0 "training seeds alone explain the difference"; 0 where seed noise is not measured.

    This is what holds the error of "not removed" for a retrain over many statistics at once: Holm's correction reaches
    the seeds' part of the noise only through a p-value, not through a margin.
    """
    if margin.noise_sd == 0:
        return 0.0
    return float(2 * special.stdtr(margin.noise_df, -abs(value) / margin.noise_sd))


def _p_worse(c: Comparison, shift: Difference) -> float:
    """p of "worse than the margin allows": both the examples and the training seeds must fail to explain it."""
    assert c.margin is not None
    by_seeds = p_from_seeds(shift.value, c.margin) / 2 if shift.value < 0 else 1.0
    return max(p_below(shift, -c.margin.value), by_seeds)


def _decide_row(
    row: Row, c: Comparison, p_same: float | None, p_other: float, tests: int, settings: VerdictSettings
) -> Row:
    assert c.difference is not None
    assert c.margin is not None
    retain = c.evidence.about == "retain"
    notes = list(c.notes)
    if p_other <= settings.alpha:
        if retain:
            return replace(row, result="damaged", note=_join(*notes))
        direction: Literal["leak", "suppression"] = "leak" if c.difference.value > 0 else "suppression"
        by_itself = max(p_different(c.difference, c.margin.value), p_from_seeds(c.difference.value, c.margin))
        if c.control_shift is not None and _p_worse(c, c.control_shift) < by_itself:
            direction = "suppression"
            notes.insert(0, "the model also does worse on data that it never saw: it was broken, not made to forget")
        return replace(row, result="different", direction=direction, note=_join(*notes))
    if p_same is None:
        return replace(row, result="cannot tell", note=_join(c.margin.drowned, *notes))
    if p_same <= settings.alpha:
        return replace(row, result="kept" if retain else "equivalent", note=_join(*notes))
    if c.cannot_show_removal:
        return replace(row, result="inconclusive", note=_join(c.cannot_show_removal, *notes))
    need = _need(c, tests, settings)
    if need is None:
        notes.insert(0, _beyond(c, tests, settings))
    return replace(row, result="inconclusive", need_n=need, note=_join(*notes))


def _need(c: Comparison, tests: int, settings: VerdictSettings) -> int | None:
    """Units needed to show equivalence; None where the examples suffice and the difference is at the margin or beyond.

    While there are too few examples to show even a perfect removal, the difference seen is mostly noise, so the number
    assumes none; after that it assumes the difference seen.
    """
    assert c.difference is not None
    assert c.margin is not None
    if c.difference.df <= 0:
        return settings.minimum_n
    perfect = _need_at(c, tests, settings, replace(c.difference, value=0.0))
    if perfect is not None and perfect > c.n:
        return perfect
    seen = _need_at(c, tests, settings, c.difference)
    return None if seen is None else max(seen, c.n + 1)


def _need_at(c: Comparison, tests: int, settings: VerdictSettings, difference: Difference) -> int | None:
    assert c.margin is not None
    # the hardest step of Holm's ladder, so that the number suffices whatever the others show
    alpha, power = settings.alpha / max(1, tests), settings.power
    retain = c.evidence.about == "retain"
    needs = [_scaled(c, difference, needed_n(difference, c.margin.value, alpha, power, one_sided=retain))]
    if c.control_shift is not None:
        shift = replace(c.control_shift, value=0.0) if difference.value == 0 else c.control_shift
        needs.append(_scaled(c, shift, needed_n(shift, c.margin.value, alpha, power, one_sided=True)))
    known = [need for need in needs if need is not None]
    return max(*known, settings.minimum_n) if len(known) == len(needs) else None


def _beyond(c: Comparison, tests: int, settings: VerdictSettings) -> str:
    assert c.difference is not None
    assert c.margin is not None
    words = "the difference seen is itself at the margin or beyond: no number of examples would show equivalence"
    need = needed_n_to_differ(c.difference, c.margin.value, settings.alpha / max(1, tests), settings.power)
    need = _scaled(c, c.difference, need)
    return f"{words}, about {need} would show the opposite" if need and c.evidence.about == "forget" else words


def _scaled(c: Comparison, difference: Difference, need: int | None) -> int | None:
    """Units of the forget set, where the smaller or the other side of a comparison counted."""
    return None if need is None else math.ceil(need * c.n / difference.n)


def _describe(c: Comparison, settings: VerdictSettings) -> Row:
    means = c.means or {}
    row = Row(
        c.evidence.statistic, c.evidence.about, "not measured", n=c.n, units=c.units, baseline=c.baseline,
        unlearned=means.get("unlearned"), baseline_mean=means.get("baseline"), original=means.get("original"),
        margin=c.margin.value if c.margin else None, margin_source=c.margin.source if c.margin else "",
        audit=c.evidence.audit, family=c.evidence.family,
    )  # fmt: skip
    if c.difference is None:
        return row
    value, interval = c.sign * c.difference.value, c.difference.interval(settings.level)
    low, high = interval if interval and c.sign > 0 else (-interval[1], -interval[0]) if interval else (None, None)
    remaining = c.difference.value / c.gap if c.gap and c.evidence.about == "forget" else None
    return replace(row, difference=value, low=low, high=high, remaining=remaining)


def _conclude(
    rows: Sequence[Row], comparisons: Sequence[Comparison], settings: VerdictSettings
) -> tuple[Result, list[str]]:
    reasons = [f"{wording.name(row)}: {row.note}" for row in rows if row.note]
    if not rows:
        return "inconclusive", ["no audit gave evidence about the forget set"]
    results = [row.result for row in rows]
    sources = {c.margin.source for c in comparisons if c.margin and not c.uninformative}
    reasons += [f"margin: {source}" for source in sorted(sources)]
    if "different" in results:
        return "not removed", reasons
    if "inconclusive" in results or "not measured" in results:
        return "inconclusive", reasons
    if "equivalent" in results:
        return "removed", reasons
    return "inconclusive", ["no statistic can tell a model that knows the data from one that does not", *reasons]


def _retained(rows: Sequence[Row]) -> Retained:
    results = {row.result for row in rows}
    if "damaged" in results:
        return "damaged"
    if "inconclusive" in results:
        return "inconclusive"
    if "kept" in results:
        return "inconclusive" if "not measured" in results else "kept"
    return "not measured"


def _needed(rows: Sequence[Row]) -> int | None:
    """Units that would settle every undecided row, or None where for one of them no number would."""
    needs = [row.need_n for row in rows if row.result == "inconclusive"]
    known = [need for need in needs if need is not None]
    return max(known) if known and len(known) == len(needs) else None


def _join(*notes: str) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
