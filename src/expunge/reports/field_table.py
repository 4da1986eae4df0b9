"""The table that papers on classifiers print: UA, RA, TA, MIA-efficacy, average gap and RTE, a row per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expunge.audits.base import Estimate
from expunge.reports.leaderboard import CellValue, Column, cell_text
from expunge.reports.report import RunReport

TITLE = "The field's table"
# Key of the column -> audit and number that it shows, heading, decimals.
_NUMBERS: Mapping[str, tuple[str, str, str, int]] = {
    "ua": ("accuracies", "ua", "UA (%)", 2),
    "ra": ("accuracies", "ra", "RA (%)", 2),
    "ta": ("accuracies", "ta", "TA (%)", 2),
    "fa": ("accuracies", "fa", "FA (%)", 2),
    "mia": ("svc_mia", "confidence", "MIA-efficacy (%)", 2),
    "gap": ("average_gap", "gap_of_means", "Average gap", 2),
}


def field_table(report: RunReport, models: Sequence[str]) -> tuple[list[Column], list[dict[str, CellValue]]]:
    """Return columns and rows of the table.

    Args:
        report: of a classifier.
        models: names of its models, in the order of the rows.

    Returns:
        A row per model; RTE in the row of the unlearned model alone. FA has a column where
        there is something like it (a class that was forgotten). Both empty where the report has no accuracies.
    """
    found = {finding.audit: finding for finding in report.findings if finding.status == "measured"}
    if "accuracies" not in found:
        return [], []
    known = {scalar.name for scalar in found["accuracies"].scalars}
    chosen = {key: what for key, what in _NUMBERS.items() if what[0] != "accuracies" or what[1] in known}
    columns = [Column("model", "Model"), *(Column(key, what[2], digits=what[3]) for key, what in chosen.items())]
    rows: list[dict[str, CellValue]] = []
    for model in models:
        row: dict[str, CellValue] = {"model": model}
        for key, (audit, number, _, _) in chosen.items():
            row[key] = found[audit].estimates.get(model, {}).get(number) if audit in found else None
        row["rte"] = report.rte if model == "unlearned" else ""
        rows.append(row)
    return [*columns, Column("rte", "RTE (minutes)", digits=2)], rows


def in_words(
    columns: Sequence[Column], rows: Sequence[Mapping[str, CellValue]], intervals: bool = True
) -> list[list[str]]:
    """Return the cells of the table as text, with intervals in brackets or without."""

    def cell(value: CellValue, digits: int) -> str:
        return cell_text(value if intervals or not isinstance(value, Estimate) else value.value, digits)

    return [[cell(row.get(column.key), column.digits) for column in columns] for row in rows]
