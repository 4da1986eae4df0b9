"""The contract of a reproduction: a paper's central claim, tried at small scale.

A reproduction is one file in this room with one subclass of ``Reproduction``. It measures per seed, and judges over all
seeds what it measured; the judging never sees a model, so it can be tested on made-up numbers.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from expunge.audits.base import Estimate
from expunge.runs.progress import Progress


@dataclass(frozen=True)
class Check:
    """One thing that must be so if the paper's claim holds.

    Attributes:
        claim: what must be so, in words.
        holds: whether it is, over the seeds.
        detail: the numbers behind it; where it does not hold, also the likely reason.
    """

    claim: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Workbench:
    """Where and how one seed of a reproduction is run.

    Attributes:
        folder: the seed's own; whatever is written there is found again after a kill.
        shared: for what several seeds and reproductions use, such as small models (see ``world.py``).
        quick: run a smaller version, seconds instead of minutes, to see that everything works.
        data: folder of published data, or None; a reproduction that cannot do without it raises ``BadInput``.
        progress: hears what is being done.
    """

    folder: Path
    shared: Path
    quick: bool = False
    data: Path | None = None
    progress: Progress = field(default_factory=Progress)


class Reproduction(ABC):
    """A paper's central claim, tried at small scale.

    Class attributes:
        id: name on the command line.
        title: one line on what is tried.
        paper: source.
        claim: the paper's claim, as it is tried here.
        seeds: what is run unless other seeds are asked for.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    claim: ClassVar[str]
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)

    @abstractmethod
    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        """Run one seed.

        Args:
            seed: everything random follows from it: same seed, same numbers.
            bench: where and how.

        Returns:
            Everything measured, by name, finite. What there was nothing to measure of is left out, never 0.
        """

    @abstractmethod
    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        """Say what of the claim holds over the seeds.

        Args:
            runs: what ``run`` returned, one per seed, at least one.

        Returns:
            At least one check; the claim holds if all of them do.
        """


@dataclass(frozen=True)
class Result:
    """What came out of a reproduction.

    Attributes:
        name, title, paper, claim: of the reproduction.
        checks: what holds and what does not.
        measured: every number's mean over the seeds with its 95 % interval (Student's t); ``n`` counts the seeds that
            gave it.
        runs: seed -> the numbers of that seed.
        minutes: time of one process on all seeds together, those of an earlier start included.
        quick: whether this is the smaller version, whose numbers are not to be quoted.
        facts: date, command, commit, versions and hardware.
    """

    name: str
    title: str
    paper: str
    claim: str
    checks: tuple[Check, ...]
    measured: Mapping[str, Estimate]
    runs: Mapping[int, Mapping[str, float]]
    minutes: float
    quick: bool
    facts: Mapping[str, Any]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``--json`` prints them."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "claim": self.claim,
            "holds": self.holds,
            "checks": [{"claim": c.claim, "holds": c.holds, "detail": c.detail} for c in self.checks],
            "measured": {
                key: {"mean": e.value, "low": e.low, "high": e.high, "n": e.n} for key, e in self.measured.items()
            },
            "seeds": list(self.seeds),
            "minutes": round(self.minutes, 2),
            "quick": self.quick,
            "runs": {str(seed): dict(numbers) for seed, numbers in self.runs.items()},
            "facts": dict(self.facts),
        }


def column(runs: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """Return the seeds' values of one number, those that have it."""
    return [run[key] for run in runs if key in run]


def mean(runs: Sequence[Mapping[str, float]], key: str) -> float:
    """Return the mean of one number over the seeds that have it.

    Raises:
        KeyError: no seed has it.
    """
    values = column(runs, key)
    if not values:
        raise KeyError(key)
    return statistics.fmean(values)
