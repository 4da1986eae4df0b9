"""What follows from a metric, by one rule for both definitions, so that a change comes from the definition alone.

Every question is asked twice: of open-unlearning's numbers and of ours. A mean is above or below the retained model's
where the 95 % interval of the paired difference leaves out 0; forget quality speaks against forgetting below p = 0.05,
as TOFU reads it; membership shows where the interval of the AUC leaves out 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.audits.base import Estimate, Finding
from expunge.audits.intervals import harmonic_mean, paired_difference, statistic_interval
from expunge.audits.language.privleak import privleak
from expunge.audits.language.truth_ratio import log_truth_ratio
from expunge.audits.roc import auc, auc_interval
from expunge.benchmarks.open_unlearning_metrics import DEFAULT_AUC, UTILITY, Metric, Seen, per_example
from expunge.benchmarks.open_unlearning_names import AREAS, MEANS, our_number
from expunge.verdict import Verdict

ALPHA = 0.05
NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Answer:
    """What one side says: in a word, and the numbers behind it."""

    word: str
    shown: str

    def __str__(self) -> str:
        return f"{self.word} ({self.shown})" if self.shown else self.word


@dataclass(frozen=True)
class Conclusion:
    """One question and both answers.

    Attributes:
        metric: whose numbers answer it.
        question: what is asked.
        theirs, ours: the answers.
    """

    metric: str
    question: str
    theirs: Answer
    ours: Answer

    @property
    def changed(self) -> bool:
        """Whether the corrected definition changes the answer."""
        return self.theirs.word != self.ours.word

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"metric": self.metric, "question": self.question, "changed": self.changed, "theirs": str(self.theirs),
                "ours": str(self.ours)}  # fmt: skip


@dataclass(frozen=True)
class Sides:
    """Everything that is compared: their metrics and our findings, of the model and of the retained one.

    Attributes:
        model: their metrics of the model.
        retained: of the model that was trained without the forget set; None where its weights were not given.
        seen, retained_seen: what these were computed from.
        findings: ours, by audit.
        verdict: ours.
        ids: example ids of each of our sets, in the order of the file.
        groups: example id -> author, where there are authors.
        retained_area: the retained model's Min-K area, from weights or a log; None where nothing says it.
    """

    model: Mapping[str, Metric]
    retained: Mapping[str, Metric] | None
    seen: Seen
    retained_seen: Seen | None
    findings: Mapping[str, Finding]
    verdict: Verdict
    ids: Mapping[str, Sequence[str]]
    groups: Mapping[str, str]
    retained_area: float | None = None


def conclusions(sides: Sides) -> list[Conclusion]:
    """Ask every question that the data allows."""
    out: list[Conclusion] = []
    if sides.retained is not None:
        out += _gone(sides)
        out += [_against(sides, name) for name in MEANS if name in sides.model and name in sides.retained]
        if "model_utility" in sides.model and "model_utility" in sides.retained:
            out.append(_utility(sides, sides.retained))
    if "extraction_strength" in sides.model:
        out.append(_extractable(sides))
    out += [_membership(sides, name) for name in AREAS if name in sides.model]
    if "privleak" in sides.model:
        out.append(_leak(sides))
    return out


def _gone(sides: Sides) -> list[Conclusion]:
    p = sides.model.get("forget_quality", {}).get("agg_value")
    if p is None or not np.isfinite(p):
        return []
    verdict, shown = sides.verdict, f"p {p:.3g}"
    out = [
        Conclusion("forget_quality", "Is the data gone?", Answer("removed" if p >= ALPHA else "not removed", shown),
                   Answer(verdict.result, verdict.sentence))
    ]  # fmt: skip
    question, theirs = "Do the truth ratios differ from the retained model's?", Answer(_quality(p), shown)
    if (mine := our_number(sides.findings, "forget_quality").value) is not None:
        out.append(Conclusion("forget_quality", question, theirs, Answer(_quality(mine), f"p {mine:.3g}")))
    if sides.retained_seen is not None and (paper := _arithmetic_p(sides.seen, sides.retained_seen)) is not None:
        asked = f"{question[:-1]}, with the paper's arithmetic mean on the same tokens?"
        out.append(Conclusion("forget_quality", asked, theirs, Answer(_quality(paper), f"p {paper:.3g}")))
    return out


def _quality(p: float) -> str:
    return "not shown to differ" if p >= ALPHA else "they differ"


def _arithmetic_p(model: Seen, retained: Seen) -> float | None:
    from scipy.stats import ks_2samp

    both = []
    for seen in (model, retained):
        pairs = zip(seen.paraphrased["forget"], seen.perturbed["forget"], strict=True)
        whole = [(one, [s for s in wrong if s]) for one, wrong in pairs if one and all(wrong)]
        both.append([log_truth_ratio(one.nll, [s.nll for s in wrong], "arithmetic") for one, wrong in whole])
    return float(ks_2samp(*both).pvalue) if all(both) else None


def _against(sides: Sides, name: str) -> Conclusion:
    assert sides.retained is not None
    where = MEANS[name]
    ids = sides.ids[where.role]
    theirs = [
        {ids[int(i)]: value for i, value in per_example(name, side[name]).items()}
        for side in (sides.model, sides.retained)
    ]
    ours = [_values(sides.findings.get(where.audit), m, where.statistic, ids) for m in ("unlearned", "oracle")]
    answers = []
    for one, two in (theirs, ours):
        found = _difference(one, two, sides.groups)
        answers.append(Answer(_direction(found), _interval(found)))
    return Conclusion(name, "Is it above or below the retained model's?", *answers)


def _values(finding: Finding | None, model: str, statistic: str, ids: Sequence[str]) -> dict[str, float]:
    found, wanted = (finding.per_example if finding else {}).get(model, {}), set(ids)
    return {i: values[statistic] for i, values in found.items() if i in wanted and statistic in values}


def _difference(one: Mapping[str, float], two: Mapping[str, float], groups: Mapping[str, str]) -> Estimate:
    shared = [i for i in one if i in two and np.isfinite(one[i]) and np.isfinite(two[i])]
    if not shared:
        return Estimate(None, note="no example has a value under both models")
    known = {i: groups[i] for i in shared if i in groups}
    return paired_difference(
        {i: one[i] for i in shared},
        {i: two[i] for i in shared},
        known if len(known) == len(shared) else None,
        bounds=(-1.0, 1.0),
    )


def _direction(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return "not measured" if difference.value is None else NO_DIFFERENCE
    return "above" if difference.low > 0 else "below" if difference.high < 0 else NO_DIFFERENCE


def _interval(found: Estimate, digits: int = 3) -> str:
    if found.value is None:
        return found.note
    inside = "" if found.low is None else f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{found.value:.{digits}f}{inside}"


def _utility(sides: Sides, retained: Mapping[str, Metric]) -> Conclusion:
    theirs = [_their_utility(side) for side in (sides.model, retained)]
    ours = [our_number(sides.findings, "model_utility", model) for model in ("unlearned", "oracle")]
    answers = [Answer(_apart(*pair), f"{_interval(pair[0])} against {_interval(pair[1])}") for pair in (theirs, ours)]
    return Conclusion("model_utility", "Do the intervals of the two models lie apart?", *answers)


def _their_utility(metrics: Mapping[str, Metric]) -> Estimate:
    parts = {name: per_example(name, metrics[name]) for name in UTILITY}
    broken = [name for name, values in parts.items() if not np.isfinite(list(values.values())).all()]
    return Estimate(None, note=f"{broken[0]} is no number") if broken else harmonic_mean(parts, resamples=1000)


def _apart(one: Estimate, two: Estimate) -> str:
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return "not measured"
    return "above" if one.low > two.high else "below" if one.high < two.low else NO_DIFFERENCE


def _extractable(sides: Sides) -> Conclusion:
    ours = our_number(sides.findings, "extraction_strength").value
    values = [sides.model["extraction_strength"]["agg_value"], ours]
    answers = [
        Answer("not measured", "") if v is None else Answer("yes" if v > 0 else "no", f"{v:.4f}") for v in values
    ]
    return Conclusion("extraction_strength", "Can the end of any answer be drawn out?", *answers)


def _membership(sides: Sides, name: str) -> Conclusion:
    found = _attack(sides.model[name], sides.ids)
    groups = {role: [sides.groups.get(i, "") for i in values] for role, values in found.items()}
    both = [known if all(known) else None for known in groups.values()]
    values = [list(side.values()) for side in found.values()]
    if np.isfinite(np.concatenate(values)).all():
        theirs = auc_interval(values[0], values[1], member_groups=both[0], non_member_groups=both[1])
    else:
        theirs = Estimate(None, note="an answer has no label")
    answers = [Answer(_told(area), _interval(area)) for area in (theirs, our_number(sides.findings, name))]
    return Conclusion(name, "Can the forget set be told from unseen examples?", *answers)


def _attack(metric: Metric, ids: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    return {
        role: {ids[role][int(i)]: -e["score"] for i, e in metric[role]["value_by_index"].items()}
        for role in ("forget", "holdout")
    }


def _told(area: Estimate) -> str:
    if area.low is None or area.high is None:
        return "not measured"
    return "yes" if area.low > 0.5 else "yes, pushed away" if area.high < 0.5 else "not shown"


def _leak(sides: Sides) -> Conclusion:
    question = "Does membership show more or less than in the retained model?"
    ours = our_number(sides.findings, "privleak")
    if sides.retained is None:
        value = sides.model["privleak"]["agg_value"]
        against = DEFAULT_AUC if sides.retained_area is None else sides.retained_area
        theirs = Answer(_leaks("above" if value > 0 else "below"), f"{value:.1f}, against an AUC of {against:.3g}")
        return Conclusion("privleak", question, theirs, Answer("no number", ours.note))
    own, other = (_attack(metrics["mia_min_k"], sides.ids) for metrics in (sides.model, sides.retained))
    theirs_found = leak_interval(own, other, parity=True)
    answers = [Answer(_leaks(_direction(e)), _interval(e, 1)) for e in (theirs_found, ours)]
    return Conclusion("privleak", question, *answers)


def leak_interval(
    own: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]], parity: bool
) -> Estimate:
    """Return PrivLeak with its interval.

    Args:
        own, other: "forget" and "holdout" -> id -> score, high for members, of the model and of the retained one.
        parity: with their denominator; without, no number where the retained model's AUC is 1.
    """
    if not np.isfinite([v for side in (*own.values(), *other.values()) for v in side.values()]).all():
        return Estimate(None, note="a text has no score")
    if not parity and auc(*(list(other[side].values()) for side in ("forget", "holdout"))) >= 1:
        return Estimate(None, note="undefined: the retained model's AUC is 1")
    samples = {**own, **{f"retained {role}": values for role, values in other.items()}}
    # As for our audit: a resample in which the retained model's AUC reaches 1 has no ratio.
    most = 1 - 1 / (len(own["forget"]) * len(own["holdout"]))

    def leak(parts: Mapping[str, Any]) -> float:
        area = min(auc(parts["retained forget"], parts["retained holdout"]), most)
        return privleak(auc(parts["forget"], parts["holdout"]), area, parity=parity)

    return statistic_interval(samples, leak, resamples=1000)


@dataclass(frozen=True)
class MuseSides:
    """What is compared of MUSE: metrics in their layout, of the model and of the retained one.

    Attributes:
        theirs, theirs_retained: by their definitions; None without the retained model's weights.
        ours, ours_retained: by ours.
    """

    theirs: Mapping[str, Metric]
    theirs_retained: Mapping[str, Metric] | None
    ours: Mapping[str, Metric]
    ours_retained: Mapping[str, Metric] | None

    @property
    def pairs(self) -> tuple[tuple[Mapping[str, Metric], Mapping[str, Metric] | None], ...]:
        """(model, retained) of either side."""
        return (self.theirs, self.theirs_retained), (self.ours, self.ours_retained)


def muse_conclusions(sides: MuseSides, estimate: Callable[[str, Metric], Estimate]) -> list[Conclusion]:
    """Ask the same questions of MUSE's metrics.

    Args:
        sides: both definitions.
        estimate: a metric's number with its interval.
    """
    out, retained = [], sides.theirs_retained
    for name, metric in sides.theirs.items():
        answers = []
        if name.startswith("mia_") and name in sides.ours:
            for side in (sides.theirs, sides.ours):
                area = estimate(name, side[name])
                answers.append(Answer(_told(area), _interval(area)))
            out.append(Conclusion(name, "Can the forget set be told from unseen examples?", *answers))
        elif name == "privleak":
            out.append(_muse_leak(sides, metric))
        elif retained is not None and name in retained and name in sides.ours:
            for model, other in sides.pairs:
                assert other is not None
                found = _difference(per_example(name, model[name]), per_example(name, other[name]), {})
                answers.append(Answer(_direction(found), _interval(found)))
            out.append(Conclusion(name, "Is it above or below the retained model's?", *answers))
    return out


def our_leak(own: Mapping[str, Metric], retained: Mapping[str, Metric] | None) -> Estimate:
    """Return PrivLeak of our Min-K, in a layout of ``MUSE_EVAL.json``; no number without the retained model."""
    if retained is None:
        return Estimate(None, note="needs the model trained without the forget set")
    return leak_interval(_by_side(own["mia_min_k"]), _by_side(retained["mia_min_k"]), parity=False)


def _by_side(metric: Metric) -> dict[str, dict[str, float]]:
    return {role: {i: -e["score"] for i, e in metric[role]["value_by_index"].items()} for role in ("forget", "holdout")}


def _muse_leak(sides: MuseSides, metric: Metric) -> Conclusion:
    question = "Does membership show more or less than in the retained model?"
    if sides.theirs_retained is None:
        value = metric["agg_value"]
        theirs = Answer(_leaks("above" if value > 0 else "below"), f"{value:.1f}, without the retained model's weights")
    else:
        own, other = (_by_side(side["mia_min_k"]) for side in (sides.theirs, sides.theirs_retained))
        found = leak_interval(own, other, parity=True)
        theirs = Answer(_leaks(_direction(found)), _interval(found, 1))
    mine = our_leak(sides.ours, sides.ours_retained)
    word = "no number" if mine.value is None else _leaks(_direction(mine))
    return Conclusion("privleak", question, theirs, Answer(word, _interval(mine, 1)))


def _leaks(direction: str) -> str:
    return {"above": "over-unlearned", "below": "leaks"}.get(direction, direction)
