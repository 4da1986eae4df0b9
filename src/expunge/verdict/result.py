"""What a verdict says, as plain typed values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from expunge.verdict.settings import VerdictSettings

if TYPE_CHECKING:
    from expunge.verdict.families import FamilyResult

Result = Literal["removed", "not removed", "inconclusive"]
Retained = Literal["kept", "damaged", "inconclusive", "not measured"]
RowResult = Literal["equivalent", "different", "kept", "damaged", "inconclusive", "cannot tell", "not measured"]
LEVELS = ("guard", "adapter", "approximate", "exact", "unknown")


@dataclass(frozen=True)
class Row:
    """One test of the verdict.

    Attributes:
        statistic, about: what was tested, on which examples.
        result: "equivalent", "different" or "inconclusive" for the forget set; "kept", "damaged" or "inconclusive" for
            the retain set; "cannot tell" where the statistic does not separate knowing from not knowing (it then takes
            no part in the verdict); "not measured" where there was nothing to test.
        direction: "leak" (towards knowing) or "suppression" (beyond never having known) of a "different" row.
        n, units: how many independent units, and whether they are examples or groups.
        baseline: "oracle", "holdout", "original" or "none".
        unlearned, baseline_mean, original: means in the statistic's own unit.
        difference, low, high: unlearned minus baseline, with its unadjusted interval.
        margin, margin_source: how large a difference counts as none, and why.
        remaining: share of the gap between original and baseline that is still there: 1 untouched, 0 like never having
            known, negative beyond that.
        p_equivalent, p_different: Holm-adjusted p-values (for the retain set: of kept, of damaged).
        p_equivalent_raw, p_different_raw: the same before adjustment.
        need_n: units that would be needed to show equivalence, where that is undecided; None where no n suffices.
        note: what else to know.
        audit, family: of the audit that gave the evidence; "" where nobody said.
    """

    statistic: str
    about: Literal["forget", "retain"]
    result: RowResult
    direction: Literal["leak", "suppression"] | None = None
    n: int = 0
    units: Literal["examples", "groups"] = "examples"
    baseline: str = "none"
    unlearned: float | None = None
    baseline_mean: float | None = None
    original: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    margin_source: str = ""
    remaining: float | None = None
    p_equivalent: float | None = None
    p_different: float | None = None
    p_equivalent_raw: float | None = None
    p_different_raw: float | None = None
    need_n: int | None = None
    note: str = ""
    audit: str = ""
    family: str = "behaviour"


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        result: "removed", "not removed" or "inconclusive".
        by_tests: what the tests alone say; differs from ``result`` for guards and adapters only.
        need_n: units needed for a decision where it is inconclusive for want of examples; None otherwise.
        sentence: the answer in one sentence of plain words.
        retained: "kept", "damaged", "inconclusive" or "not measured".
        retained_need_n, retained_sentence: the same for the retained knowledge.
        removal_level: as given.
        rows: one per piece of evidence.
        families: what each family of audits says; see ``verdict.families``.
        decided_by: the statistic that shows most clearly that the model is not like one that never knew; "" where none
            does: every test agrees, none decides, or the removal level alone does.
        crashed: audits that broke down, beside which nothing is "removed" or "kept".
        reasons: why the answer is what it is, and what it could not take into account.
        settings: as used.
    """

    result: Result
    by_tests: Result
    sentence: str
    removal_level: str
    need_n: int | None = None
    retained: Retained = "not measured"
    retained_need_n: int | None = None
    retained_sentence: str = ""
    rows: tuple[Row, ...] = ()
    families: tuple[FamilyResult, ...] = ()
    decided_by: str = ""
    crashed: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    settings: VerdictSettings = field(default_factory=VerdictSettings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; every number is finite or None."""
        return {
            "result": self.result,
            "by_tests": self.by_tests,
            "sentence": self.sentence,
            "need_n": self.need_n,
            "removal_level": self.removal_level,
            "retained": {
                "result": self.retained,
                "sentence": self.retained_sentence,
                "need_n": self.retained_need_n,
            },
            "alpha": self.settings.alpha,
            "settings": self.settings.model_dump(),
            "decided_by": self.decided_by,
            "crashed": list(self.crashed),
            "families": [asdict(family) for family in self.families],
            "rows": [{key: _plain(value) for key, value in asdict(row).items()} for row in self.rows],
            "notes": list(self.reasons),
        }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
