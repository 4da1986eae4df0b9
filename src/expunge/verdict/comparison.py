"""From one piece of evidence to one difference, with the margin that it must stay within.

Differences and gaps are oriented here: positive is towards knowing the data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from expunge.audits.base import Evidence
from expunge.verdict.equivalence import Difference, p_different, paired, two_sample
from expunge.verdict.noise import Margin, SeedNoise, Units
from expunge.verdict.settings import VerdictSettings

Baseline = Literal["oracle", "holdout", "original", "none"]
_ORACLE = re.compile(r"oracle(-\d+)?$")


@dataclass(frozen=True)
class Comparison:
    """What one statistic says before any decision.

    Attributes:
        evidence: what it came from.
        sign: +1 where knowing is high, -1 where it is low; the three differences below are multiplied by it.
        baseline: what stands for never having known (or, for the retain set, for having kept).
        units: "examples" or "groups".
        n: units of the forget (or retain) set.
        means: "unlearned", "baseline" and "original" where there is one, in the statistic's own unit.
        difference: unlearned minus baseline, or None where there is no test.
        control_shift: unlearned minus original on the holdout, where the holdout is the baseline.
        beyond_unseen: the difference less the same one on the holdout, which no model saw; None where not measured.
        gap: original minus baseline (for the retain set: the knowledge that could be lost), or None.
        margin: how large a difference counts as none, or None.
        blocked: why the statistic could not be tested; blocks the verdict "removed".
        uninformative: why the statistic cannot tell knowing from not knowing; takes it out of the verdict.
        cannot_show_removal: why not even equivalence would show removal.
        ignorance: level of the statistic in a model that does not know, where that was measured.
        notes: what else to know.
    """

    evidence: Evidence
    sign: int
    baseline: Baseline = "none"
    units: Literal["examples", "groups"] = "examples"
    n: int = 0
    means: Mapping[str, float] | None = None
    difference: Difference | None = None
    control_shift: Difference | None = None
    beyond_unseen: Difference | None = None
    gap: float | None = None
    margin: Margin | None = None
    blocked: str = ""
    uninformative: str = ""
    cannot_show_removal: str = ""
    ignorance: float | None = None
    notes: tuple[str, ...] = ()


def oracles(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Names of the oracle models, sorted."""
    return sorted(name for name in values if _ORACLE.match(name))


def compare(evidence: Evidence, settings: VerdictSettings, ignorance: float | None = None) -> Comparison:
    """Compare the unlearned model with its baseline on one statistic.

    Args:
        evidence: values per model and example.
        settings: of the verdict.
        ignorance: for the retain set, the level of the statistic in a model that does not know; None if unknown.

    Returns:
        The comparison; ``blocked`` says why where there is nothing to test.
    """
    sign = 1 if evidence.knowing_is == "high" else -1
    if problem := _unusable(evidence):
        return Comparison(evidence, sign, blocked=problem)
    if evidence.about == "retain":
        return _compare_retain(evidence, sign, settings, ignorance)
    if oracles(evidence.values):
        return _compare_with_oracles(evidence, sign, settings)
    if evidence.control.get("unlearned"):
        return _compare_with_holdout(evidence, sign, settings)
    return Comparison(evidence, sign, blocked="there is neither an oracle nor a holdout set to compare with")


def _unusable(evidence: Evidence) -> str:
    unlearned = evidence.values.get("unlearned")
    if not unlearned:
        return "no values of the unlearned model"
    for where, models in (("", evidence.values), (" on the holdout set", evidence.control)):
        for model, values in models.items():
            bad = sorted(i for i, value in values.items() if not math.isfinite(value))
            if bad:
                count = f"{len(bad)} of {len(values)} values of {model}{where} are NaN or infinite"
                return f"{count} (such as {bad[0]}): a number that could not be computed is no sign of forgetting"
    everything = set().union(*evidence.values.values())
    for model, values in evidence.values.items():
        if missing := sorted(everything - values.keys()):
            count = f"{len(missing)} of {len(everything)} examples (such as {missing[0]})"
            return f"{model} has no value on {count}: what was not measured is no sign of forgetting"
    return ""


def _compare_with_oracles(evidence: Evidence, sign: int, settings: VerdictSettings) -> Comparison:
    names = oracles(evidence.values)
    units = Units(list(evidence.values["unlearned"]), evidence.groups, settings.minimum_groups)
    unlearned = units(evidence.values["unlearned"])
    each = np.stack([units(evidence.values[name]) for name in names])
    baseline = each.mean(0)
    spread = float(baseline.std(ddof=1)) if units.n > 1 else 0.0
    noise = SeedNoise.of(evidence, names, each, settings)
    means = {"unlearned": float(unlearned.mean()), "baseline": float(baseline.mean())}
    notes = (units.note,) if units.note else ()
    so_far = Comparison(
        evidence, sign, "oracle", units.kind, units.n, means, ignorance=means["baseline"], notes=notes,
        beyond_unseen=_beyond_unseen(evidence, sign * (unlearned - baseline), names, sign, settings),
    )  # fmt: skip
    if not evidence.values.get("original"):
        margin = _margin_without_original(noise, spread, settings)
        difference = paired(sign * (unlearned - baseline), margin.value)
        return replace(so_far, difference=difference, margin=margin, cannot_show_removal=_NO_ORIGINAL)
    original = units(evidence.values["original"])
    means["original"] = float(original.mean())
    gap = sign * float((original - baseline).mean())
    text = f"{settings.margin_fraction:.0%} of the gap between original and oracle"
    margin = noise.margin(settings.margin_fraction * abs(gap), text, settings, abs(gap))
    return replace(
        so_far,
        difference=paired(sign * (unlearned - baseline), abs(gap)),
        gap=gap,
        margin=margin,
        uninformative=_no_gap(paired(sign * (original - baseline)), spread, noise.df == 0, settings),
        notes=notes + _wrong_way(gap),
    )


def _beyond_unseen(
    evidence: Evidence, here: NDArray[np.float64], names: Sequence[str], sign: int, settings: VerdictSettings
) -> Difference | None:
    """Return the difference on the forget set less that on the holdout, where all of these models were measured."""
    control = evidence.control
    if not control.get("unlearned") or any(
        control.get(name, {}).keys() != control["unlearned"].keys() for name in names
    ):
        return None
    units = Units(list(control["unlearned"]), evidence.groups, settings.minimum_groups)
    level = np.stack([units(control[name]) for name in names]).mean(0)
    return _two(1, here, sign * (units(control["unlearned"]) - level))


def _compare_with_holdout(evidence: Evidence, sign: int, settings: VerdictSettings) -> Comparison:
    units = Units(list(evidence.values["unlearned"]), evidence.groups, settings.minimum_groups)
    control = evidence.control
    unseen = Units(list(control["unlearned"]), evidence.groups, settings.minimum_groups)
    here, there = units(evidence.values["unlearned"]), unseen(control["unlearned"])
    means = {"unlearned": float(here.mean()), "baseline": float(there.mean())}
    spread = float(there.std(ddof=1)) if unseen.n > 1 else 0.0
    notes = tuple(dict.fromkeys(note for note in (units.note, unseen.note) if note))
    notes += ("forget and holdout examples are different examples: any difference in difficulty counts as knowledge",)
    so_far = Comparison(evidence, sign, "holdout", units.kind, units.n, means, notes=notes)
    if not evidence.values.get("original") or control.get("original", {}).keys() != control["unlearned"].keys():
        margin = _margin_without_original(SeedNoise(), spread, settings)
        difference = _two(sign, here, there, margin.value)
        return replace(so_far, difference=difference, margin=margin, cannot_show_removal=_NO_ORIGINAL)
    original, original_there = units(evidence.values["original"]), unseen(control["original"])
    means["original"] = float(original.mean())
    gap = sign * float(original.mean() - original_there.mean())
    text = f"{settings.margin_fraction:.0%} of what the original model shows between forget and holdout set"
    return replace(
        so_far,
        difference=_two(sign, here, there, abs(gap)),
        gap=gap,
        ignorance=float(original_there.mean()),
        control_shift=paired(sign * (there - original_there), abs(gap)),
        margin=SeedNoise().margin(settings.margin_fraction * abs(gap), text, settings),
        uninformative=_no_gap(_two(sign, original, original_there), spread, True, settings),
        notes=notes + _wrong_way(gap),
    )


def _compare_retain(evidence: Evidence, sign: int, settings: VerdictSettings, ignorance: float | None) -> Comparison:
    names = oracles(evidence.values)
    baseline: Baseline = "oracle" if names else "original"
    if not names and not evidence.values.get("original"):
        return Comparison(evidence, sign, blocked="there is neither an oracle nor the original model to compare with")
    units = Units(list(evidence.values["unlearned"]), evidence.groups, settings.minimum_groups)
    unlearned = units(evidence.values["unlearned"])
    each = np.stack([units(evidence.values[name]) for name in names or ["original"]])
    reference = each.mean(0)
    means = {"unlearned": float(unlearned.mean()), "baseline": float(reference.mean())}
    if evidence.values.get("original"):
        means["original"] = float(np.mean(units(evidence.values["original"])))
    spread = float(reference.std(ddof=1)) if units.n > 1 else 0.0
    known = sign * (means["baseline"] - ignorance) if ignorance is not None else 0.0
    noise = SeedNoise.of(evidence, names, each, settings) if names else SeedNoise()
    scale = known if known > 0 else None
    if scale is not None:
        share = settings.retain_margin_fraction * scale
        text = f"{settings.retain_margin_fraction:.0%} of what is known here beyond never having known"
    else:
        share = settings.min_gap_sd / 2 * spread
        text = f"{settings.min_gap_sd / 2:.2g} standard deviations between examples: what is known here is not measured"
    margin = noise.margin(share, text, settings, scale)
    flat = "" if share > 0 else "all examples score the same, and the level of not knowing is not measured"
    return Comparison(
        evidence,
        sign,
        baseline,
        units.kind,
        units.n,
        means,
        difference=paired(sign * (unlearned - reference), scale or spread),
        gap=scale,
        margin=margin,
        uninformative=flat,
        notes=(units.note,) if units.note else (),
    )


_NO_ORIGINAL = "without the original model it is not known how much there was to forget"


def _margin_without_original(noise: SeedNoise, spread: float, settings: VerdictSettings) -> Margin:
    text = f"{settings.min_gap_sd:g} standard deviations between examples, as {_NO_ORIGINAL}"
    return noise.margin(settings.min_gap_sd * spread, text, settings)


def _no_gap(gap: Difference, spread: float, unmeasured: bool, settings: VerdictSettings) -> str:
    if gap.n < 2:
        return ""
    if gap.value == 0 or p_different(gap, 0.0) > settings.alpha:
        return "the original model does not measurably differ from never having known here: nothing to forget shows"
    if unmeasured and abs(gap.value) < settings.min_gap_sd * spread:
        return (
            f"the original model's gap is under {settings.min_gap_sd:g} standard deviations between examples, and "
            "without a second oracle it cannot be told from seed-to-seed variation"
        )
    return ""


def _wrong_way(gap: float) -> tuple[str, ...]:
    return ("the original model lies on the side of not knowing here; read the direction with care",) if gap < 0 else ()


def _two(sign: int, a: NDArray[np.float64], b: NDArray[np.float64], floor: float = 0.0) -> Difference:
    return two_sample(sign * a, sign * b, floor)
