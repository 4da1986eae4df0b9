"""The tables of a MUSE run: six criteria per method, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.audits.base import Estimate
from expunge.reports.leaderboard import CellValue, Column, over_seeds, render_table, to_markdown

COLUMNS = (
    Column("method", "Method"),
    Column("verbmem", "C1 VerbMem, forget", digits=1),
    Column("knowmem_f", "C2 KnowMem, forget", digits=1),
    Column("privleak", "C3 PrivLeak (0 ideal)", digits=1),
    Column("auc", "AUC of Min-40 %"),
    Column("knowmem_r", "C4 KnowMem, retain", "high", digits=1),
    Column("forget_nll", "Forget NLL", digits=2),
    Column("empty", "Empty answers", digits=2),
    Column("reached", "Reached"),
)
ASKED = ("verbmem", "knowmem_f", "knowmem_r")


@dataclass(frozen=True)
class MuseResult:
    """The tables and everything behind them.

    Attributes:
        cells: one record per method and seed.
        facts: corpus, settings, versions, hardware, date.
    """

    cells: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def methods(self) -> list[str]:
        """Methods in the order they were run."""
        return list(dict.fromkeys(str(c["method"]) for c in self.cells))

    def rows(self) -> list[dict[str, CellValue]]:
        """One row per method for criteria 1 to 4, every number summarised over seeds."""
        rows: list[dict[str, CellValue]] = []
        for method in self.methods():
            mine = [c for c in self.cells if c["method"] == method]
            row: dict[str, CellValue] = {"method": method}
            for column in COLUMNS[1:-2]:
                row[column.key] = over_seeds([c.get(column.key) for c in mine])
            row["empty"] = over_seeds([sum(c[f"{key}_empty"] for key in ASKED) / len(ASKED) for c in mine])
            known = [c["reached"] for c in mine if c.get("reached") is not None]
            row["reached"] = f"{sum(known)} of {len(known)}" if known else "-"
            rows.append(row)
        return rows

    def fold_rows(self, part: str, key: str = "knowmem_r") -> tuple[list[dict[str, CellValue]], list[Column]]:
        """Rows and columns of criterion 5 ("scal") or 6 ("sust"): one column per fold."""
        folds: Sequence[Mapping[str, Any]] = next((c[part] for c in self.cells if c.get(part)), [])
        columns = [Column("method", "Method")]
        for k, fold in enumerate(folds):
            columns.append(Column(str(k), f"{fold['texts']} texts" if part == "scal" else f"request {k + 1}", digits=1))
        rows: list[dict[str, CellValue]] = []
        for method in self.methods():
            mine = [c for c in self.cells if c["method"] == method and c.get(part)]
            if mine:
                row: dict[str, CellValue] = {"method": method}
                row |= {str(k): over_seeds([c[part][k].get(key) for c in mine]) for k in range(len(folds))}
                rows.append(row)
        return rows, columns

    def notes(self) -> list[str]:
        """What to know when reading the tables."""
        f = self.facts
        rule = (
            "the first epoch (or strength) at which KnowMem on the forget set is at the oracle's or below, as in the "
            "paper; reached: seeds for which there is one, else the last is shown"
            if f["checkpoint"] == "knowmem"
            else "the one whose loss on the forget set is closest to the oracle's"
        )
        return [
            "Mean over seeds with Student's t 95 % interval. VerbMem and KnowMem are ROUGE-L F1 times 100; an empty "
            "answer counts as 0, so low scores beside many empty answers are damage, not forgetting.",
            "PrivLeak: -100 is fully leaked, 0 what the retrained model shows, positive over-unlearned; its largest "
            "value is 100 (1 - A) / A with A the retrained model's AUC in MUSE's orientation. retrain is a second "
            "retrained model measured against the first.",
            f"Checkpoint of criteria 1 to 4: {rule}. Criteria 5 and 6 aim at the oracle's loss on the texts; "
            "which method reached it is in the raw numbers (forget_nll beside oracle_nll).",
            f"Corpus: {f['corpus']}. Models: {f['models']}.",
        ]

    def sentences(self) -> list[str]:
        """Say which methods come near the retrained model on each criterion, whichever way it came out."""
        there = {str(row["method"]): row for row in self.rows()}
        out = []
        if "retrain" in there:
            near = [m for m in there if m not in ("original", "retrain") and _within(there[m]["privleak"], 20)]
            out.append(f"PrivLeak within 20 of the retrained model: {', '.join(near) or 'no method'}.")
        for part, word in (("scal", "with four times the texts"), ("sust", "after four requests")):
            rows, columns = self.fold_rows(part)
            falls = []
            for row in rows:
                first, last = (_value(row[columns[k].key]) for k in (1, -1))
                if first is not None and last is not None:
                    falls.append(f"{row['method']} {last - first:+.1f}")
            if falls:
                out.append(f"Change of KnowMem on the retain set {word}: {', '.join(falls)}.")
        return out

    def _tables(self) -> list[tuple[str, Sequence[Mapping[str, CellValue]], Sequence[Column], Sequence[str]]]:
        tables: list[Any] = [("MUSE, criteria 1 to 4", self.rows(), COLUMNS, [*self.sentences(), *self.notes()])]
        for part, title in (("scal", "MUSE, criterion 5"), ("sust", "MUSE, criterion 6")):
            for key, what in (
                ("knowmem_r", "KnowMem on the retain set"),
                ("privleak", "PrivLeak"),
                ("verbmem", "VerbMem of the texts forgotten so far"),
            ):
                rows, columns = self.fold_rows(part, key)
                if rows:
                    tables.append((f"{title}: {what}", rows, columns, []))
        return tables

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        return "\n\n".join(to_markdown(rows, columns, title, notes) for title, rows, columns, notes in self._tables())

    def to_html(self) -> str:
        """The tables as HTML fragments."""
        return "\n".join(render_table(rows, columns, title, notes) for title, rows, columns, notes in self._tables())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"facts": dict(self.facts), "cells": [dict(c) for c in self.cells]}


def _value(cell: CellValue) -> float | None:
    return cell.value if isinstance(cell, Estimate) else None


def _within(cell: CellValue, distance: float) -> bool:
    number = _value(cell)
    return number is not None and abs(number) <= distance
