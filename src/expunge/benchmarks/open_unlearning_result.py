"""The page of an imported run: their numbers and ours side by side, and which conclusions change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expunge.audits.base import Estimate
from expunge.benchmarks.open_unlearning_conclusions import Conclusion
from expunge.benchmarks.open_unlearning_effects import Effect
from expunge.benchmarks.open_unlearning_logs import LogRow, finite
from expunge.errors import BadInput, Problem
from expunge.reports.leaderboard import CellValue, Column, to_markdown
from expunge.reports.report import to_plain
from expunge.reports.wording import number

COLUMNS = (
    Column("metric", "Metric"),
    Column("logged", "Theirs, logged", digits=4),
    Column("recomputed", "Theirs, recomputed", digits=4),
    Column("ours", "Ours", digits=4),
    Column("difference", "Ours − theirs", digits=4),
)
LOG_COLUMNS = (
    Column("metric", "Metric"),
    Column("logged", "Logged", digits=4),
    Column("follows", "Follows from its examples", digits=4),
    Column("agrees", "Agrees"),
    Column("notes", "To know"),
)


@dataclass(frozen=True)
class MetricRow:
    """One metric of one model.

    Attributes:
        metric: its name there.
        logged: what the run's results say; None without.
        recomputed: by their definition on their layout, from the weights; None where it is not recomputed or no number.
        ours: the corrected number, with its interval.
        note: why one of them is missing.
    """

    metric: str
    logged: float | None
    recomputed: float | None
    ours: Estimate
    note: str = ""

    @classmethod
    def of(
        cls, metric: str, logged: Mapping[str, Any] | None, recomputed: Mapping[str, Any] | None, ours: Estimate
    ) -> MetricRow:
        """Make a row of what ``TOFU_EVAL.json`` holds, what was recomputed in its layout, and our estimate."""
        values = [finite(side["agg_value"]) if side else None for side in (logged, recomputed)]
        notes = ["not recomputed here"] if recomputed is None else []
        if recomputed is not None and values[1] is None:
            notes.append("no value there" if recomputed["agg_value"] is None else "NaN there")
        if ours.value is None and ours.note:
            notes.append(f"ours: {ours.note}")
        return cls(metric, values[0], values[1], ours, "; ".join(notes))

    @property
    def difference(self) -> float | None:
        """Ours minus theirs as recomputed, or as logged where it was not."""
        theirs = self.logged if self.recomputed is None else self.recomputed
        return None if theirs is None or self.ours.value is None else self.ours.value - theirs

    def cells(self) -> dict[str, CellValue]:
        """Return the row for ``COLUMNS``."""
        return {"metric": self.metric, "logged": self.logged, "recomputed": self.recomputed, "ours": self.ours,
                "difference": self.difference}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Everything that an import found.

    Attributes:
        facts: what was read, settings, versions, hardware, date.
        checks: their results against their own per-example values; empty without results.
        rows: one per metric of the model; empty where nothing was recomputed.
        retained_rows: the same of the model trained without the forget set.
        effects: what each slip touches in this data.
        conclusions: every question with both answers.
        verdict: ours, as plain values; None without weights.
    """

    facts: Mapping[str, Any]
    checks: Sequence[LogRow] = ()
    rows: Sequence[MetricRow] = ()
    retained_rows: Sequence[MetricRow] = ()
    effects: Sequence[Effect] = ()
    conclusions: Sequence[Conclusion] = ()
    verdict: Mapping[str, Any] | None = field(default=None)

    @property
    def changed(self) -> list[Conclusion]:
        """The conclusions that the corrected definition changes."""
        return [one for one in self.conclusions if one.changed]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; what is NaN there is null."""

        def plain(rows: Sequence[MetricRow]) -> list[dict[str, Any]]:
            return [{**asdict(row), "difference": row.difference} for row in rows]

        out = {
            "facts": dict(self.facts), "checks": [asdict(row) for row in self.checks], "model": plain(self.rows),
            "retained_model": plain(self.retained_rows), "effects": [asdict(one) for one in self.effects],
            "conclusions": [one.to_dict() for one in self.conclusions], "verdict": self.verdict,
        }  # fmt: skip
        return dict(to_plain(out))

    def to_markdown(self) -> str:
        """Return the page."""
        parts = []
        if self.facts.get("not_recomputed"):
            parts.append(f"Nothing was recomputed: {self.facts['not_recomputed']}.\n")
        for title, rows in (("The model", self.rows), ("The model trained without the forget set", self.retained_rows)):
            if rows:
                notes = [f"{', '.join(r.metric for r in rows if r.note == note)}: {note}."
                         for note in dict.fromkeys(row.note for row in rows) if note]  # fmt: skip
                parts.append(to_markdown([row.cells() for row in rows], COLUMNS, title, notes))
        if self.conclusions:
            changed = self.changed
            parts.append(_conclusions(changed, f"Conclusions that change: {len(changed)} of {len(self.conclusions)}"))
            parts.append(_conclusions([c for c in self.conclusions if not c.changed], "Conclusions that stay"))
        touched = [one for one in self.effects if one.touched]
        if self.effects:
            lines = "\n".join(f"- {one.name}: {one}" for one in touched) or "None of those counted touches an example."
            parts.append(f"## What their slips touch\n\n{lines}\n")
        if self.checks:
            parts.append(
                to_markdown([log_cells(row) for row in self.checks], LOG_COLUMNS, "Their results by themselves")
            )
        return "\n".join(parts)

    def write(self, folder: Path) -> None:
        """Write ``results.json`` and ``page.md`` into a folder.

        Raises:
            BadInput: the folder cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(Problem("--out", f"{folder} cannot be made: {error.strerror}", "name another")) from error
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        (folder / "page.md").write_text(
            f"# A run of open-unlearning, recomputed\n\n{self.to_markdown()}", encoding="utf-8"
        )


def log_cells(row: LogRow) -> dict[str, CellValue]:
    """Return a checked metric for ``LOG_COLUMNS``."""
    agrees = "-" if row.agrees is None else "yes" if row.agrees else "no"
    notes = [*row.notes, *([row.follows.note] if row.follows.value is None and row.follows.note else [])]
    return {"metric": row.metric, "logged": row.logged, "follows": row.follows, "agrees": agrees,
            "notes": "; ".join(notes)}  # fmt: skip


def shown(value: float | None, digits: int = 4) -> str:
    """Write a number of the table for a terminal; "-" where there is none."""
    return "-" if value is None else number(value, digits)


def _conclusions(found: Sequence[Conclusion], title: str) -> str:
    columns = [Column(key, key.capitalize()) for key in ("metric", "question", "theirs", "ours")]
    rows: list[dict[str, CellValue]] = [
        {"metric": c.metric, "question": c.question, "theirs": str(c.theirs), "ours": str(c.ours)} for c in found
    ]
    return to_markdown(rows, columns, title) if rows else f"## {title}\n\nNone.\n"
