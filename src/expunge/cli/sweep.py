"""``expunge sweep``: a grid of runs and one leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from expunge.cli.terminal import Shown, say, show, show_json, stopped
from expunge.errors import BadInput, Problem, collected, tried

if TYPE_CHECKING:
    from expunge.runs.entries import Choice

GRID, EQUAL, WHERE = "What to run", "What counts as equal forgetting", "Where to run"

# Their defaults stand in the help text, because a default on its own line is cut off at 80 columns.
On = typer.Option(
    "probability/forget_nll",
    help="The forget statistic; probability/forget_nll if left out.",
    rich_help_panel=EQUAL,
    metavar="AUDIT/NUMBER",
    show_default=False,
)
Keep = typer.Option(
    "probability/retain_probability",
    help="What is compared at equal forgetting; probability/retain_probability if left out.",
    rich_help_panel=EQUAL,
    metavar="AUDIT/NUMBER",
    show_default=False,
)
Tolerance = typer.Option(
    0.1,
    min=0.0,
    max=1.0,
    help="Share of the way from the original to the level.",
    rich_help_panel=EQUAL,
    metavar="SHARE",
)


def sweep(
    recipe: Path = typer.Argument(help="YAML file of a run: model, data, settings, audits.", metavar="RECIPE"),
    methods: str = typer.Option("", help="Methods, separated by commas.", rich_help_panel=GRID),
    overrides: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=V1,V2",
        help="Values of a setting for the methods that know it, or METHOD.KEY=V1,V2 for one; repeatable.",
        rich_help_panel=GRID,
    ),
    seeds: str = typer.Option("0", help="Seeds, separated by commas.", rich_help_panel=GRID),
    level: str | None = typer.Option(
        None,
        help="Where methods stop and are compared: oracle, holdout, a number, or none. The oracle's if there is one, "
        "otherwise the holdout's.",
        rich_help_panel=EQUAL,
    ),
    on: str = On,
    keep: str = Keep,
    tolerance: float = Tolerance,
    out: Path = typer.Option(Path("runs/sweep"), help="Folder of the sweep.", metavar="FOLDER"),
    jobs: int | None = typer.Option(
        None, min=1, help="Runs at a time; one per core, or all a cluster has room for.", rich_help_panel=WHERE
    ),
    engine: Literal["local", "ray", "dask"] = typer.Option(
        "local", help="This machine, or an existing cluster.", rich_help_panel=WHERE
    ),
    cluster: str | None = typer.Option(None, help="Address of the cluster.", rich_help_panel=WHERE),
    as_json: bool = typer.Option(False, "--json", help="Print the leaderboard as JSON."),
) -> None:
    """Run methods times settings times seeds, and compare them at equal forgetting.

    Started again, it goes on where it was: nothing that is finished is run again.
    """
    with Shown() as progress:
        progress.stage("checking every cell")
        from expunge.runs.entries import Choice
        from expunge.runs.grid import plan_sweep
        from expunge.runs.recipe import try_read_recipe
        from expunge.runs.sweep import run_sweep

        problems: list[Problem] = []
        base, _ = try_read_recipe(recipe)
        there = {"oracle": bool(base and base.oracle), "holdout": bool(base and base.holdout)}
        chosen = level or next((name for name, is_there in there.items() if is_there), "missing")
        # Of a recipe that cannot be read nobody knows whether it has a yardstick; what is wrong with it, is said.
        aim = None if chosen == "missing" and base is None else tried(problems, "--level", lambda: level_of(chosen))
        choice = Choice(aim, on, keep, tolerance)
        problems += _no_numbers({"--on": on, "--keep": keep})
        numbers = tried(problems, "--seeds", lambda: _seeds(seeds)) or [0]
        names = [part.strip() for part in methods.split(",") if part.strip()]
        with collected(problems):
            cells = plan_sweep(recipe, {}, overrides, names, numbers, _stop_at(choice), progress)
        if problems:
            raise BadInput(list(dict.fromkeys(problems)))
        try:
            result = run_sweep(cells, out, choice, jobs=jobs, engine=engine, cluster=cluster, progress=progress)
        except KeyboardInterrupt:
            stopped(f"{out} keeps what is finished; the same command goes on from there.")
    if as_json:
        show_json(result.to_dict())
        return
    show_board(result.board)
    if result.failed:
        say(f"{len(result.failed)} of {len(cells)} cells gave no result; the same command tries them again.")
    show(f"Page: {out / 'leaderboard.html'}")


def level_of(text: str) -> Any:
    """Read a level: "oracle", "holdout", a number, or "none".

    Raises:
        BadInput: it is none of these.
    """
    if text in ("oracle", "holdout"):
        return text
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        what = (
            "is needed, as the recipe has neither an oracle nor a holdout set" if text == "missing" else f"is '{text}'"
        )
        raise BadInput(Problem("--level", what, "give oracle, holdout, a number or none")) from None


def _no_numbers(asked: Mapping[str, str]) -> list[Problem]:
    """Find names of numbers that no audit can give, before the runs that would have to."""
    from expunge.audits.suite import AUDITS
    from expunge.registry import near_names

    problems = []
    for option, key in asked.items():
        audit, slash, number = key.partition("/")
        if not (slash and number):
            problems.append(Problem(option, f"'{key}' names no number", "write AUDIT/NUMBER: probability/forget_nll"))
        elif audit not in AUDITS.names():
            problems.append(Problem(option, f"'{audit}' is not an audit", near_names(audit, AUDITS.names())))
    return problems


def _stop_at(choice: Choice) -> Any:
    """Return the level at which training stops: training watches the NLL, so only a level of that can stop it."""
    return choice.level if choice.on == "probability/forget_nll" else None


def show_board(board: Any) -> None:
    """Print a leaderboard: the columns that fit beside the method; the page has all."""
    from expunge.cli.terminal import show_table
    from expunge.reports.leaderboard import cell_text

    few = {"method", "settings", "matched", board.choice.on, board.choice.keep}
    columns = [column for column in board.columns if column.key in few]
    rows = [[cell_text(row.get(column.key), column.digits) for column in columns] for row in board.rows()]
    show_table("", [column.title for column in columns], rows)
    for note in board.notes():
        show(note)


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise BadInput(Problem("--seeds", f"'{text}' is not a list of numbers", "write it like --seeds 0,1,2"))
    return [int(part) for part in parts]
