"""Finished runs side by side: verdict, numbers with intervals, cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.audits.base import Estimate
from expunge.audits.suite import AUDITS
from expunge.errors import BadInput, Problem
from expunge.reports.leaderboard import CellValue
from expunge.reports.report import RunReport, to_plain
from expunge.reports.side_by_side import SideBySide, render_side_by_side, side_by_side
from expunge.reports.wording import NO_DATA, duration, number
from expunge.runs.folder import REPORT_JSON

HEADS = ("result", "retained", "method", "removal_level", "forget", "decided_by")
# What a first look needs; ``every`` shows the rest.
MAIN = (
    ("probability", "forget_probability"),
    ("probability", "retain_probability"),
    ("rouge", "forget_rouge_recall"),
    ("rouge", "retain_rouge_recall"),
    ("extraction_strength", "forget_extraction_strength"),
    ("truth_ratio", "forget_truth_ratio"),
    ("membership", "loss_auc"),
    ("privleak", "privleak"),
    ("accuracies", "ua"),
    ("accuracies", "ra"),
    ("accuracies", "ta"),
    ("accuracies", "fa"),
    ("svc_mia", "confidence"),
    ("average_gap", "gap_of_means"),
    ("relearning", "heldout_gain"),
    ("forget_quality", "log10_p"),
    ("model_utility", "utility"),
    ("weight_distance", "relative_distance"),
)


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison: its name in the table, its folder and its report."""

    name: str
    path: Path
    report: RunReport


@dataclass(frozen=True)
class ComparedRow:
    """One line of a comparison.

    Attributes:
        key: identifier, such as "probability.forget_probability".
        title: what it is, in words.
        cells: run name -> value; None is "no data".
        digits: decimals.
    """

    key: str
    title: str
    cells: Mapping[str, CellValue]
    digits: int = 3

    def text(self, run: str) -> str:
        """Return a run's cell in words, the interval in brackets."""
        value = self.cells.get(run)
        if isinstance(value, Estimate):
            text = number(value.value, self.digits)
            if value.value is None or value.low is None or value.high is None:
                return text
            return f"{text} [{number(value.low, self.digits)}, {number(value.high, self.digits)}]"
        if value is None:
            return NO_DATA
        return value if isinstance(value, str) else number(float(value), self.digits)


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side.

    Attributes:
        runs: in the order given.
        rows: verdict first, then numbers of the unlearned model, then cost.
        side_by_side: what every audit said of each model, and what told them apart.
        warnings: why the runs may not be comparable.
    """

    runs: Sequence[ComparedRun]
    rows: Sequence[ComparedRow]
    side_by_side: SideBySide
    warnings: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: one object per run, row key -> value, and what every audit said."""
        return {
            "runs": [
                {"name": run.name, "path": str(run.path)}
                | {row.key: to_plain(row.cells.get(run.name)) for row in self.rows}
                for run in self.runs
            ],
            "rows": [{"key": row.key, "title": row.title} for row in self.rows],
            "warnings": list(self.warnings),
            "side_by_side": self.side_by_side.to_dict(),
        }

    def to_html(self) -> str:
        """Return a page that needs nothing else: verdicts, audits by family, what told the runs apart, numbers."""
        shown = [row for row in self.rows if row.key not in HEADS and not row.key.startswith("family.")]
        numbers = [(row.title, [row.text(run.name) for run in self.runs]) for row in shown]
        reports = {run.name: run.report for run in self.runs}
        return render_side_by_side(self.side_by_side, reports, numbers, self.warnings)


def compare_runs(paths: Sequence[str | Path], *, every: bool = False) -> RunComparison:
    """Read finished runs and line up what they say.

    Args:
        paths: as in ``read_runs``.
        every: all numbers instead of the main ones.

    Raises:
        BadInput: every path that holds no report.
    """
    runs = read_runs(paths)
    if not runs:
        raise BadInput(Problem("runs", "are none", "name at least one run folder"))
    families = {audit.id: audit.family for audit in AUDITS.classes()}
    said = side_by_side({run.name: run.report for run in runs}, families)
    rows = [*_heads(runs, said), *_numbers(runs, every), *_costs(runs)]
    return RunComparison(runs, rows, said, warnings_of(runs))


def read_runs(paths: Sequence[str | Path]) -> list[ComparedRun]:
    """Read the reports of finished runs.

    Args:
        paths: run folders, report.json files, or folders of sweeps, which stand for all finished runs in them.

    Raises:
        BadInput: every path that holds no report.
    """
    problems: list[Problem] = []
    runs: list[ComparedRun] = []
    for given in _spread(paths):
        file = given / REPORT_JSON if given.is_dir() else given
        try:
            report = RunReport.from_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            fix = "give a finished run folder, or a report.json; a stopped run goes on when it is started again"
            problems.append(Problem(str(given), "holds no report", fix))
        except BadInput as error:
            problems += [Problem(str(file), p.what, p.fix) for p in error.problems]
        else:
            folder = given if given.is_dir() else given.parent
            runs.append(ComparedRun(_free_name(folder, [run.name for run in runs]), given, report))
    if problems:
        raise BadInput(problems)
    return runs


def _spread(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        inside = [] if (path / REPORT_JSON).is_file() else sorted(path.glob(f"cells/*/{REPORT_JSON}"))
        yield from (report.parent for report in inside) if inside else [path]


def _free_name(folder: Path, taken: Sequence[str]) -> str:
    name = folder.resolve().name or str(folder)
    for candidate in (name, str(folder)):
        if candidate not in taken:
            return candidate
    return f"{folder} ({len(taken) + 1})"


def _heads(runs: Sequence[ComparedRun], said: SideBySide) -> list[ComparedRow]:
    def verdict(report: RunReport) -> str | None:
        return (report.verdict or {}).get("result")

    def retained(report: RunReport) -> str | None:
        return ((report.verdict or {}).get("retained") or {}).get("result")

    return [
        ComparedRow("result", "verdict", {run.name: verdict(run.report) for run in runs}),
        ComparedRow("retained", "retained knowledge", {run.name: retained(run.report) for run in runs}),
        ComparedRow("method", "method", {r.name: r.report.method.name if r.report.method else None for r in runs}),
        ComparedRow("removal_level", "removal level", {run.name: run.report.removal_level for run in runs}),
        ComparedRow("forget", "examples to forget", {run.name: run.report.request.forget for run in runs}, 0),
        ComparedRow("decided_by", "decided by", {card.name: card.decided for card in said.models}),
        *(
            ComparedRow(f"family.{family}", family, {run.name: _family(said, family, run.name) for run in runs})
            for family in said.families
        ),
    ]


def _family(said: SideBySide, family: str, run: str) -> str:
    found = said.family(family, run)
    return f"{found.words} ({found.statistic.replace('_', ' ')})" if found.statistic else found.words


def _numbers(runs: Sequence[ComparedRun], every: bool) -> list[ComparedRow]:
    titles: dict[tuple[str, str], tuple[str, int]] = {}
    cells: dict[tuple[str, str], dict[str, CellValue]] = {}
    for run in runs:
        for finding in run.report.findings:
            for scalar in finding.scalars:
                key = (finding.audit, scalar.name)
                titles.setdefault(key, (f"{scalar.title} ({scalar.unit})", scalar.digits))
                cells.setdefault(key, {})[run.name] = finding.estimates.get("unlearned", {}).get(scalar.name)
    chosen = list(titles) if every else [key for key in MAIN if key in titles]
    return [ComparedRow(".".join(key), titles[key][0], cells[key], titles[key][1]) for key in chosen]


def _costs(runs: Sequence[ComparedRun]) -> list[ComparedRow]:
    stages = dict.fromkeys(stage for run in runs for stage in run.report.cost)
    efficiency = ComparedRow("cost.rte", "RTE (minutes of forgetting alone)", {r.name: r.report.rte for r in runs}, 2)
    return [efficiency] * any(run.report.rte is not None for run in runs) + [
        ComparedRow(
            f"cost.{stage}.seconds",
            f"time: {stage}",
            {r.name: duration(r.report.cost[stage].get("seconds")) if stage in r.report.cost else None for r in runs},
        )
        for stage in stages
    ]


def warnings_of(runs: Sequence[ComparedRun]) -> list[str]:
    """Say why runs may not be comparable."""
    found = []
    if len({run.report.request.fingerprint for run in runs}) > 1:
        found.append("these runs answer different requests, so their numbers are about different examples")
    if len({str(run.report.hardware) for run in runs}) > 1:
        found.append("these runs were made on different machines, so their times cannot be compared")
    if len({r.report.models["original"].sha256 for r in runs if "original" in r.report.models} - {""}) > 1:
        found.append("these runs started from different models")
    return found
