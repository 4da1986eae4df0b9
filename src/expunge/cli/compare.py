"""``expunge compare``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path

import typer

from expunge.cli.sweep import EQUAL, Keep, On, Tolerance, level_of, show_board
from expunge.cli.terminal import say, show, show_json, show_table


def compare(
    runs: list[Path] = typer.Argument(help="Run folders, report.json files, or folders of sweeps.", metavar="RUN..."),
    every: bool = typer.Option(False, "--all", help="Every number, not only the main ones."),
    level: str | None = typer.Option(
        None,
        help="Make a leaderboard at equal forgetting instead: oracle, holdout, a number, or none.",
        rich_help_panel=EQUAL,
    ),
    on: str = On,
    keep: str = Keep,
    tolerance: float = Tolerance,
    html: Path | None = typer.Option(None, help="Also write the table as a page.", metavar="FILE"),
    as_json: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """Put finished runs side by side: verdict, main numbers, cost; or rank them where they forgot equally much."""
    if level is not None:
        from expunge.runs.board import board_of
        from expunge.runs.comparison import read_runs
        from expunge.runs.entries import Choice

        board = board_of(read_runs(runs), Choice(level_of(level), on, keep, tolerance))
        if html is not None:
            from expunge.reports.report import write_text

            write_text(html, board.to_html())
        if as_json:
            show_json(board.to_dict())
        else:
            show_board(board)
        return
    from expunge.runs.comparison import compare_runs

    found = compare_runs(runs, every=every)
    if html is not None:
        from expunge.reports.report import write_text

        write_text(html, found.to_html())
    if as_json:
        show_json(found.to_dict())
        return
    for warning in found.warnings:
        say(f"warning: {warning}")
    # Three runs fit beside the names; more go below.
    for start in range(0, len(found.runs), 3):
        block = found.runs[start : start + 3]
        rows = [(row.title, *(row.text(run.name) for run in block)) for row in found.rows]
        show_table("", ("", *(run.name for run in block)), rows, numbers=range(1, len(block) + 1))
    if html is not None:
        show(f"Page: {html}")
