"""How much models that never saw the data differ among themselves, and the margin that this asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from expunge.audits.base import Evidence
from expunge.verdict.settings import VerdictSettings


class Units:
    """Turns values by example id into values by independent unit, in an order that depends on ids only."""

    def __init__(self, ids: Sequence[str], groups: Mapping[str, str], minimum_groups: int):
        self.ids = sorted(ids)
        names = {groups[i] for i in self.ids if i in groups}
        self.kind: Literal["examples", "groups"] = "examples"
        self.note = ""
        if names and all(i in groups for i in self.ids):
            if len(names) >= minimum_groups:
                self.kind = "groups"
                _, self._index = np.unique([groups[i] for i in self.ids], return_inverse=True)
            elif len(names) < len(self.ids):
                self.note = (
                    f"only {len(names)} group(s): examples are taken as independent, so errors may be understated"
                )
        self.n = len(names) if self.kind == "groups" else len(self.ids)

    def __call__(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        """[n] one value per unit."""
        x = np.array([values[i] for i in self.ids], dtype=np.float64)
        if self.kind == "groups":
            return np.asarray(np.bincount(self._index, x) / np.bincount(self._index), dtype=np.float64)
        return x


@dataclass(frozen=True)
class Margin:
    """How large a difference counts as none.

    Attributes:
        value: half-width.
        source: where it came from, in words.
        drowned: why it is too wide to show equivalence, or ""; a difference beyond it still counts.
        noise_sd: standard deviation of (a new model that never saw the data - the baseline) from seeds alone; 0 where
            it is not measured.
        noise_df: degrees of freedom that it rests on, the assumption's included.
    """

    value: float
    source: str
    drowned: str
    noise_sd: float
    noise_df: float


@dataclass(frozen=True)
class SeedNoise:
    """Seed-to-seed variance of a model's mean statistic, as far as it was measured.

    Attributes:
        df: degrees of freedom measured; 0 if not measured.
        variance: mean square over them.
        oracles: how many oracles the baseline is the mean of; at least 1.
    """

    df: int = 0
    variance: float = 0.0
    oracles: int = 1

    @classmethod
    def of(
        cls, evidence: Evidence, names: Sequence[str], each: NDArray[np.float64], settings: VerdictSettings
    ) -> SeedNoise:
        """Measure from the oracles' means, and from original against oracle on examples that neither saw."""
        k = len(names)
        total, df = (float(each.mean(1).var()) * k, k - 1) if k > 1 else (0.0, 0)
        control = evidence.control
        shared = [name for name in names if control.get(name, {}).keys() == control.get("original", {}).keys()]
        if evidence.about == "forget" and control.get("original") and shared:
            unseen = Units(list(control["original"]), evidence.groups, settings.minimum_groups)
            level = np.mean([unseen(control[name]).mean() for name in shared])
            total += float(unseen(control["original"]).mean() - level) ** 2 / (1 + 1 / len(shared))
            df += 1
        return cls(df, total / df if df else 0.0, k)

    def margin(self, share: float, text: str, settings: VerdictSettings, scale: float | None = None) -> Margin:
        """Widen a margin to what seed noise needs.

        A margin alone carries the assumption that it covers ``margin_sd`` standard deviations of one retrain against
        another. The assumption counts as ``assumed_df`` measurements and is pooled with what was measured, so one more
        oracle corrects it without a jump (moderated variance; Smyth 2004).

        Args:
            share: the margin before.
            text: where that came from.
            settings: of the verdict.
            scale: the gap; a margin above ``max_margin_fraction`` of it tells nothing.
        """
        assumed = (share / (settings.margin_sd * small_sample(settings.assumed_df))) ** 2 / 2
        df = self.df + settings.assumed_df
        variance = (self.df * self.variance + settings.assumed_df * assumed) / df
        noise_sd = math.sqrt(variance * (1 + 1 / self.oracles))
        if self.df == 0:
            return Margin(share, f"{text}; seed-to-seed variation is not measured", "", 0.0, 0.0)
        needed = settings.margin_sd * small_sample(df) * noise_sd
        drowned = ""
        if scale is not None and needed > settings.max_margin_fraction * scale:
            drowned = "models that never saw the data differ among themselves too much for this statistic to tell"
        if needed > share:
            return Margin(needed, self._words(settings), drowned, noise_sd, df)
        source = f"{text}; the measured seed-to-seed variation needs less ({needed:.3g})"
        return Margin(share, source, drowned, noise_sd, df)

    def _words(self, settings: VerdictSettings) -> str:
        what = [f"{self.oracles} oracles"] if self.oracles > 1 else []
        what += ["the holdout set"] if self.df > self.oracles - 1 else []
        return (
            f"seed-to-seed variation between models that never saw the data (sd {math.sqrt(self.variance):.3g}, "
            f"measured on {' and '.join(what)}; covers {settings.margin_sd:g} sd, inflated for so few measurements)"
        )


def small_sample(df: float) -> float:
    """How much wider Student's t is than the normal at 97.5 %."""
    return float(special.stdtrit(df, 0.975) / special.ndtri(0.975))
