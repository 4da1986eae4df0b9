"""How a finished run is shown, in words and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from expunge.cli.terminal import say, show, show_json, show_table
from expunge.errors import Diverged, ExpungeError, NotRemoved

if TYPE_CHECKING:
    from expunge.reports.report import RunReport
    from expunge.runs.job import JobResult


def finish(done: JobResult, as_json: bool, required: str | None = None) -> None:
    """Show a finished run and check what was asked of it; leaves with 1 where training broke down."""
    folder = done.folder.path
    if done.repeated:
        say(f"{folder} holds this run already; nothing was done again.")
    show_report(done.report, folder, as_json, diverged=done.diverged)
    if done.diverged:
        _leave(Diverged(f"{folder}: {done.kept}, because training stopped: {done.stop_reason}"))
    check_required(required, done.result)


def check_required(required: str | None, result: str) -> None:
    """Leave with 3 if the verdict is not the required one."""
    if required is not None and result != required:
        _leave(NotRemoved(f"the verdict is '{result}', and '{required}' was required"))


def _leave(error: ExpungeError) -> NoReturn:
    """Leave after the result was shown: its JSON must stay the only one."""
    say(str(error))
    raise typer.Exit(error.exit_code)


def as_dict(report: RunReport, folder: Path | None) -> dict[str, Any]:
    """Return the main content of a report as plain values; the whole of it is in ``report.json``."""
    from expunge.reports.report import to_plain

    verdict = dict(report.verdict or {})
    model = str(folder / "model") if folder is not None and (folder / "model").is_dir() else None
    return {
        "model": model,
        "folder": str(folder) if folder else None,
        "report_html": str(folder / "report.html") if folder else None,
        "report_json": str(folder / "report.json") if folder else None,
        "request": to_plain(report.request),
        "method": report.method.name if report.method else None,
        "removal_level": report.removal_level,
        "result": verdict.get("result"),
        "verdict": verdict,
        "stop_reason": report.training.stop_reason if report.training else None,
        "scalars": {
            model: {
                f"{finding.audit}.{name}": to_plain(estimate)
                for finding in report.findings
                for name, estimate in finding.estimates.get(model, {}).items()
            }
            for model in report.models
        },
        "audits": {f.audit: {"status": f.status, "note": f.note} for f in report.findings},
        "cost": to_plain(report.cost),
        "notes": list(report.notes),
    }


def show_report(report: RunReport, folder: Path | None, as_json: bool, **more: Any) -> None:
    """Print verdict, main numbers, cost and where everything is; ``more`` goes into the JSON form only."""
    from expunge.reports import wording
    from expunge.reports.field_table import TITLE, field_table, in_words
    from expunge.reports.report import LEVELS

    if as_json:
        show_json(as_dict(report, folder) | more)
        return

    verdict = report.verdict or {}
    show(str(verdict.get("sentence", "")))
    retained = (verdict.get("retained") or {}).get("sentence")
    if retained:
        show(f"Retained knowledge: {retained}")
    show(f"Removal level: {report.removal_level}. {LEVELS[report.removal_level]}")
    for note in report.notes:
        show(f"Note: {note}")
    rows = [row for row in verdict.get("rows", []) if row["result"] != "not measured"]
    if rows:
        show_table(
            "",
            ("statistic", "set", "original", "unlearned", "never knew", "result"),
            [
                (
                    str(row["statistic"]).replace("_", " "),
                    str(row["about"]),
                    *(_number(row[key]) for key in ("original", "unlearned")),
                    # Where nothing that never knew was given, what had to stay is compared with the original.
                    "-" if row.get("baseline") == "original" else _number(row["baseline_mean"]),
                    str(row["result"]),
                )
                for row in rows
            ],
            numbers=(2, 3, 4),
        )
    columns, numbers = field_table(report, list(report.models))
    if columns:
        words = in_words(columns, numbers, intervals=False)
        short = {"mia": "MIA (%)", "rte": "RTE (min)"}  # eight columns in eighty places
        titles = [short.get(column.key, column.title) for column in columns]
        show_table(TITLE, titles, words, numbers=range(1, len(columns)), whole=True)
    spent = [f"{stage} {wording.duration(cost.get('seconds'))}" for stage, cost in report.cost.items()]
    if spent:
        show(f"Time: {', '.join(spent)}")
    if folder is not None:
        if (folder / "model").is_dir():
            show(f"Model:  {folder / 'model'}")
        show(f"Report: {folder / 'report.html'}")


def _number(value: float | None) -> str:
    from expunge.reports import wording

    return wording.number(value)
