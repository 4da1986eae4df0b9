"""What each family of audits says, and which test decides: the verdict seen by where one looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.audits.base import FAMILIES
from expunge.verdict.result import Row

Said = Literal["leak", "suppression", "equivalent", "inconclusive", "cannot tell"]


@dataclass(frozen=True)
class FamilyResult:
    """What one family of audits says about the forgotten data.

    Attributes:
        family: one of ``FAMILIES``.
        result: "leak" or "suppression" where one of its tests finds the model different from never having known;
            "inconclusive" where one is open and none different; "equivalent" where all that can tell say so; "cannot
            tell" where none can.
        audit, statistic: of the test that says so; of several the clearest.
        tests: how many tests the family has.
    """

    family: str
    result: Said
    audit: str
    statistic: str
    tests: int


def by_family(rows: Sequence[Row]) -> tuple[FamilyResult, ...]:
    """Sum up the forget rows of a verdict by family, in the order of ``FAMILIES``; families without a row are absent.

    Args:
        rows: after correction for all tests together, so that looking at more families does not find more by luck.
    """
    found = []
    forget = [row for row in rows if row.about == "forget"]
    for family in dict.fromkeys([*FAMILIES, *(row.family for row in forget)]):
        own = [row for row in forget if row.family == family]
        if own:
            result, row = _sum_up(own)
            found.append(FamilyResult(family, result, row.audit, row.statistic, len(own)))
    return tuple(found)


def decisive(rows: Sequence[Row]) -> Row | None:
    """Return the forget row that shows most clearly that the model is not like one that never knew; None if none does.

    A leak counts before suppression, and among those the one with the largest share of the original's gap.
    """
    different = [row for row in rows if row.about == "forget" and row.result == "different"]
    leaks = [row for row in different if row.direction == "leak"]
    return max(leaks or different, key=lambda row: abs(row.remaining or 0), default=None)


def _sum_up(rows: Sequence[Row]) -> tuple[Said, Row]:
    worst = decisive(rows)
    if worst is not None:
        return worst.direction or "leak", worst
    undecided = [row for row in rows if row.result in ("inconclusive", "not measured")]
    if undecided:
        return "inconclusive", max(undecided, key=_doubt)
    same = [row for row in rows if row.result == "equivalent"]
    return ("equivalent", max(same, key=_doubt)) if same else ("cannot tell", rows[0])


def _doubt(row: Row) -> float:
    return 1.0 if row.p_equivalent is None else row.p_equivalent
