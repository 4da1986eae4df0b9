"""The tables of classifiers and regressors: one row per method and scenario, beside the retrained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.benchmarks.predictor_data import known_data
from expunge.benchmarks.predictor_tables import Found, Record
from expunge.reports.leaderboard import CellValue, Column, over_seeds, page, render_table, to_csv, to_markdown
from expunge.runs.folder import RunFolder

ORACLE, OTHER = "retrain", "retrain, other seed"
# (records of a method, those of the oracle of the same seeds) -> column -> values, one per seed, or one of all.
Compare = Callable[[Sequence[Record], Sequence[Record]], Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class PredictorResult:
    """The tables of a run and everything behind them.

    Attributes:
        title: of the benchmark.
        found: data set -> what its plan gave.
        columns: what is shown of every method, after its name; ``fa`` and the like only where there is any.
        compare: gives the columns that compare a method with the oracle.
        notes: how to read the numbers.
        facts: date, versions, hardware and options.
    """

    title: str
    found: Mapping[str, Found]
    columns: tuple[Column, ...]
    compare: Compare
    notes: tuple[str, ...]
    facts: Mapping[str, Any]

    def tables(self) -> list[tuple[str, str]]:
        """Return the data set and scenario of every table, in order."""
        return [(name, scenario) for name, found in self.found.items() for scenario in found.settings]

    def rows(self, dataset: str, scenario: str) -> list[dict[str, CellValue]]:
        """Return one row per method, every number summarised over seeds; what failed says why."""
        found = self.found[dataset]
        cells = [r for r in found.records if r["scenario"] == scenario]
        oracle = {r["seed"]: r for r in cells if r["method"] == ORACLE}
        rows: list[dict[str, CellValue]] = []
        for method in dict.fromkeys(str(r["method"]) for r in cells):
            every = [r for r in cells if r["method"] == method]
            mine = [r for r in every if "failed" not in r]
            row: dict[str, CellValue] = {"method": method}
            if len(mine) < len(every):
                why = next(r["failed"] for r in every if "failed" in r)
                row["note"] = f"failed at {len(every) - len(mine)} of {len(every)} seeds: {why}"
            for column in self.columns:
                own = [r.get(column.key) for r in mine]
                row[column.key] = over_seeds(own) if any(v is not None for v in own) else ""
            if method != ORACLE and mine:
                for key, values in self.compare(mine, [oracle[r["seed"]] for r in mine]).items():
                    row[key] = over_seeds(values)
            spent = [r["cpu_seconds"] / found.retraining[scenario][r["seed"]] for r in mine if "cpu_seconds" in r]
            row["of_retraining"] = over_seeds(spent) if spent else ""
            row["seconds"] = over_seeds([r["seconds"] for r in mine]) if spent else ""
            rows.append(row)
        order = {ORACLE: 0, OTHER: 1, "original": 2}
        return sorted(rows, key=lambda row: order.get(str(row["method"]), 3))

    def shown(self, rows: Sequence[Mapping[str, CellValue]]) -> list[Column]:
        """Return the columns of a table: those of which any row has a value."""
        every = [Column("method", "Method"), *self.columns, Column("seconds", "RTE, s", digits=2),
                 Column("of_retraining", "of retraining", digits=3), Column("note", "Note")]  # fmt: skip
        return [c for c in every if any(row.get(c.key) not in (None, "") for row in rows)]

    def comments(self, dataset: str, scenario: str) -> list[str]:
        """Return what must be known to read a table: the model, what is forgotten, settings, what was left out."""
        found, data = self.found[dataset], known_data(dataset)
        chosen = found.settings[scenario]
        said = [f"{data.title}: {data.model}, trained from nothing with {dict(data.training)}.", *self.notes]
        trials = sum(1 for r in found.tried if r["scenario"] == scenario and r["method"] != ORACLE)
        if trials:
            said.append(
                f"Settings: {trials} trials on a seed of its own, as many for every method that has so many; chosen: "
                + "; ".join(f"{method} {_varied(own)}" for method, own in chosen.items())
                + f". Common: {self.facts['common']}."
            )
        said += [f"Not run: {method}, which {why}." for method, why in found.left_out[scenario].items()]
        return said

    def to_markdown(self) -> str:
        """Return the tables as Markdown."""
        parts = []
        for dataset, scenario in self.tables():
            rows = self.rows(dataset, scenario)
            shown, title = self.shown(rows), f"{self.title}: {known_data(dataset).title}, {scenario}"
            blank = [{c.key: row.get(c.key, "") for c in shown} for row in rows]
            parts.append(to_markdown(blank, shown, title, self.comments(dataset, scenario)))
        return "\n".join(parts)

    def to_html(self) -> str:
        """Return the tables as HTML fragments."""
        parts = []
        for dataset, scenario in self.tables():
            rows = self.rows(dataset, scenario)
            shown, title = self.shown(rows), f"{self.title}: {known_data(dataset).title}, {scenario}"
            blank = [{c.key: row.get(c.key, "") for c in shown} for row in rows]
            parts.append(render_table(blank, shown, title, self.comments(dataset, scenario)))
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        sets = {
            name: {
                "records": found.records, "trials": found.tried, "settings": found.settings,
                "left_out": found.left_out, "retraining_cpu_seconds": found.retraining,
            }
            for name, found in self.found.items()
        }  # fmt: skip
        return {"facts": dict(self.facts), "sets": sets}

    def write(self, out: Path) -> None:
        """Write the tables and the records into a folder."""
        folder = RunFolder(out)
        folder.write_json("results.json", self.to_dict())
        folder.write_text("table.md", self.to_markdown() + "\n")
        folder.write_text("table.html", page(self.title, self.to_html()))
        tables = []
        for dataset, scenario in self.tables():
            rows = self.rows(dataset, scenario)
            tables.append(to_csv(rows, self.shown(rows)))
        folder.write_text("table.csv", "\n".join(tables))


def _varied(settings: Mapping[str, Any]) -> str:
    """What trials varied, in words."""
    from expunge.benchmarks.predictor_settings import COMMON

    return ", ".join(f"{k}={v}" for k, v in settings.items() if COMMON.get(k) != v) or "as they are"
