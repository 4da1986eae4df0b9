"""The tables of a TOFU run: one row per method, compared where methods forgot equally much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.audits.base import Estimate
from expunge.reports.leaderboard import CellValue, Column, over_seeds, render_table, to_markdown

COLUMNS = (
    Column("method", "Method"),
    Column("forget_nll", "Forget NLL", digits=2),
    Column("model_utility/utility", "Model utility", "high"),
    Column("forget_quality/log10_p", "Forget quality, log10 p", "high", digits=2),
    Column("probability/retain_probability", "Retain probability", "high"),
    Column("rouge/retain_rouge_recall", "Retain ROUGE-L", "high"),
    Column("rouge/forget_rouge_recall", "Forget ROUGE-L"),
    Column("extraction_strength/forget_extraction_strength", "Extraction strength"),
    Column("steps", "Steps", digits=0),
    Column("matched", "Matched"),
)


@dataclass(frozen=True)
class TofuResult:
    """The tables of a run and everything behind them.

    Attributes:
        cells: one record per method, seed and split.
        facts: recipe, versions, hardware, date, rows in use.
    """

    cells: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def splits(self) -> list[str]:
        """Splits in the order they were run."""
        return list(dict.fromkeys(str(c["split"]) for c in self.cells))

    def rows(self, split: str) -> list[dict[str, CellValue]]:
        """One row per method of a split, every number summarised over seeds."""
        rows: list[dict[str, CellValue]] = []
        cells = [c for c in self.cells if c["split"] == split]
        for method in dict.fromkeys(str(c["method"]) for c in cells):
            mine = [c for c in cells if c["method"] == method]
            row: dict[str, CellValue] = {"method": method}
            for column in COLUMNS[1:-1]:
                row[column.key] = over_seeds([c.get(column.key) for c in mine])
            row["matched"] = f"{sum(matched(c) for c in mine)} of {len(mine)}"
            rows.append(row)
        return rows

    def difference(self, split: str, a: str, b: str, key: str = "model_utility/utility") -> Estimate:
        """Paired difference a - b over seeds at which both forgot equally much, with Student's t interval."""
        found: dict[str, dict[int, float]] = {a: {}, b: {}}
        for c in self.cells:
            if c["split"] == split and c["method"] in found and c.get(key) is not None and matched(c):
                found[str(c["method"])][int(c["seed"])] = float(c[key])
        return over_seeds([found[a][s] - found[b][s] for s in sorted(set(found[a]) & set(found[b]))])

    def sentences(self, split: str) -> list[str]:
        """Say whether NPO keeps more utility than gradient ascent at equal forgetting, whichever way it came out."""
        difference = self.difference(split, "npo", "gradient_ascent")
        if difference.value is None:
            there = {c["method"] for c in self.cells if c["split"] == split}
            asked = {"npo", "gradient_ascent"} <= there
            return (
                ["NPO and gradient ascent reached equal forgetting at no common seed: not comparable."] if asked else []
            )
        low, high = difference.low, difference.high
        if low is None or high is None:
            claim = "one seed gives no interval, so nothing can be concluded"
        elif low > 0:
            claim = "NPO keeps more utility than gradient ascent at equal forgetting"
        elif high < 0:
            claim = "NPO keeps less utility than gradient ascent at equal forgetting"
        else:
            claim = "no difference in utility between NPO and gradient ascent is shown at equal forgetting"
        interval = f" [{low:+.3f}, {high:+.3f}]" if low is not None and high is not None else ""
        found = f"{difference.value:+.3f}{interval}, n = {difference.n} seeds"
        return [f"NPO minus gradient ascent, model utility: {found}: {claim}."]

    def notes(self) -> list[str]:
        """What to know when reading the tables."""
        f = self.facts
        return [
            "Mean over seeds with Student's t 95 % interval. Every method keeps the checkpoint whose forget loss is "
            f"closest to one level ({f['target']}); matched: seeds that came within 10 % of the way from the "
            "original's loss to it. Rows that are not matched must not be compared on utility.",
            f"Models: {f['models']}. Rows: {f['rows']}.",
            "Forget quality depends on the number of rows and cannot be compared across splits.",
        ]

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        parts = []
        for split in self.splits():
            notes = [*self.sentences(split), *self.notes()]
            parts.append(to_markdown(self.rows(split), COLUMNS, f"TOFU {split}", notes))
        return "\n\n".join(parts)

    def to_html(self) -> str:
        """The tables as HTML fragments."""
        return "\n".join(
            render_table(self.rows(s), COLUMNS, f"TOFU {s}", [*self.sentences(s), *self.notes()]) for s in self.splits()
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"facts": dict(self.facts), "cells": [dict(c) for c in self.cells]}


def matched(cell: Mapping[str, Any]) -> bool:
    """Whether a cell's forget loss is within a tenth of the way from the original's to the level aimed at."""
    gap = abs(cell["target_nll"] - cell["original_nll"])
    return bool(abs(cell["forget_nll"] - cell["target_nll"]) <= 0.1 * gap)
