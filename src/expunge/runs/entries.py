"""Finished runs as a leaderboard reads them: who forgot how much, and what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from expunge.reports.leaderboard import over_seeds
from expunge.reports.pareto import Candidate
from expunge.reports.report import RunReport
from expunge.runs.comparison import ComparedRun

# The settings that a run has of its own: never what a row is about.
_OWN = ("seed",)


@dataclass(frozen=True)
class Choice:
    """What counts as equal forgetting, and what is compared at it.

    Attributes:
        level: of the forget statistic: the oracle's, the holdout's (what the original says of data that it never saw),
            a number, or None to compare without matching.
        on: the forget statistic, as AUDIT/NUMBER.
        keep: the statistic of retained knowledge, in the same form.
        tolerance: a run is matched if it is within this share of the way from the original to the level.
    """

    level: Literal["oracle", "holdout"] | float | None = "oracle"
    on: str = "probability/forget_nll"
    keep: str = "probability/retain_probability"
    tolerance: float = 0.1


@dataclass(frozen=True)
class Entry:
    """One finished run, as the board reads it.

    Attributes:
        run: name of the run.
        method, seed: what was run.
        settings: those in which the runs of its method differ.
        forget, retain: the two statistics of the new model; None is "no data".
        original: the forget statistic before.
        level: the level aimed at.
        numbers: "audit/number" -> value.
        verdict: its result.
        facts: steps, seconds and floating-point operations of forgetting, why it ended.
    """

    run: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    forget: float | None
    retain: float | None
    original: float | None
    level: float | None
    numbers: Mapping[str, float | None]
    verdict: str
    facts: Mapping[str, Any]

    def matched(self, tolerance: float) -> bool:
        """Say whether it forgot as much as the level asks for; never where something is not known."""
        if self.forget is None or self.level is None or self.original is None:
            return False
        return abs(self.forget - self.level) <= tolerance * abs(self.level - self.original)


@dataclass(frozen=True)
class Group:
    """The runs of one method with one choice of settings, over seeds."""

    method: str
    settings: Mapping[str, Any]
    entries: Sequence[Entry]
    tolerance: float

    @cached_property
    def matched(self) -> list[Entry]:
        """The runs that forgot as much as the level asks for."""
        return [e for e in self.entries if e.matched(self.tolerance)]

    @property
    def counted(self) -> Sequence[Entry]:
        """The runs whose numbers stand in the table: the matched ones, or all where none is."""
        return self.matched or self.entries

    @property
    def name(self) -> str:
        """Method and settings in words."""
        return f"{self.method} ({words(self.settings)})" if self.settings else self.method


def words(settings: Mapping[str, Any]) -> str:
    """Write settings as key=value."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def kept(group: Group, less_is_more: bool) -> float:
    """Return how much a group kept, larger is more; minus infinity where nothing is known."""
    value = over_seeds([e.retain for e in group.counted]).value
    return -math.inf if value is None else -value if less_is_more else value


def candidate(group: Group) -> Candidate | None:
    """Return a group as a point; None where a statistic is missing."""
    runs = [(e.forget, e.retain) for e in group.counted if e.forget is not None and e.retain is not None]
    if not runs:
        return None
    return Candidate(group.name, sum(f for f, _ in runs) / len(runs), sum(r for _, r in runs) / len(runs), runs)


def numbers_of(report: RunReport, model: str) -> dict[str, float | None]:
    """Return every number of a model: "audit/number" -> value."""
    return {
        f"{finding.audit}/{name}": estimate.value
        for finding in report.findings
        for name, estimate in finding.estimates.get(model, {}).items()
    }


def entry_of(run: ComparedRun, choice: Choice, varied: Mapping[str, Sequence[str]]) -> Entry:
    """Read a run.

    Args:
        run: one that has a method.
        choice: which numbers count.
        varied: from ``varied_settings``.
    """
    report = run.report
    assert report.method is not None
    numbers, before = numbers_of(report, "unlearned"), numbers_of(report, "original")
    flat = _flat(report.method.settings)
    level: float | None
    if choice.level == "oracle":
        level = over_seeds(
            [numbers_of(report, m).get(choice.on) for m in report.models if m.startswith("oracle")]
        ).value
    elif choice.level == "holdout":
        level = before.get(choice.on.replace("forget", "holdout"))
    else:
        level = choice.level
    cost = report.cost.get("forgetting", {})
    training = report.training
    return Entry(
        run=run.name,
        method=report.method.name,
        seed=int(report.seeds.get("all", 0)),
        settings={key: flat.get(key) for key in varied[report.method.name]},
        forget=numbers.get(choice.on),
        retain=numbers.get(choice.keep),
        original=before.get(choice.on),
        level=level,
        numbers=numbers,
        verdict=str((report.verdict or {}).get("result", "no verdict")),
        facts={
            "steps": next((p.step for p in training.path if p.kept), None) if training else None,
            "seconds": cost.get("seconds"),
            "flops": cost.get("flops"),
            "stopped": training.stop_reason if training else "",
            "diverged": any("broke down" in note for note in report.notes),
        },
    )


def varied_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Find the settings in which the runs of each method differ."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        assert run.report.method is not None
        seen.setdefault(run.report.method.name, []).append(_flat(run.report.method.settings))
    return {
        method: [
            key
            for key in dict.fromkeys(key for settings in many for key in settings)
            if key not in _OWN and len({repr(settings.get(key)) for settings in many}) > 1
        ]
        for method, many in seen.items()
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
