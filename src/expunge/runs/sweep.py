"""``expunge sweep``: a grid of runs, as many at a time as there is room for, and one leaderboard from them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem
from expunge.reports.report import write_text
from expunge.runs.board import Board, board_of
from expunge.runs.comparison import ComparedRun, read_runs
from expunge.runs.engine import Engine, run_all
from expunge.runs.entries import Choice
from expunge.runs.facts import usable_cores
from expunge.runs.folder import REPORT_HTML, REPORT_JSON, RunFolder, writing
from expunge.runs.grid import Cell
from expunge.runs.job import run_job
from expunge.runs.progress import Progress
from expunge.runs.recipe import Recipe
from expunge.runs.shelf import Shelf

CELLS = "cells"


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        out: its folder: ``cells/`` with a run folder each, ``leaderboard.html``, ``.json``, ``.csv`` and ``.md``.
        board: the leaderboard.
        failed: name of a cell -> why it gave no result.
        ran: cells that were run now; the others were there already.
    """

    out: Path
    board: Board
    failed: Mapping[str, str] = field(default_factory=dict)
    ran: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"out": str(self.out), "ran": self.ran, "failed": dict(self.failed), **self.board.to_dict()}

    def to_markdown(self) -> str:
        """Return the leaderboard, and what failed."""
        return self.board.to_markdown()


def run_sweep(
    cells: Sequence[Cell],
    out: str | Path,
    choice: Choice,
    *,
    jobs: int | None = None,
    engine: Engine = "local",
    cluster: str | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Run every cell that is not there yet, and put all of them on one leaderboard.

    Each cell is a run folder named by the hash of its recipe and inputs. The same command goes on where it was
    stopped: what is finished is read, what was running goes on from its last checkpoint, what failed is tried again.

    Args:
        cells: from ``plan_sweep``.
        out: folder of the sweep.
        choice: how equal forgetting is defined, and what is compared at it.
        jobs, engine, cluster: as in ``run_all``.
        progress: hears of every cell that ends.

    Raises:
        BadInput: the folder holds something else, or no cluster answers.
    """
    progress, folder = progress or Progress(), Path(out)
    _refuse(folder)
    waiting = [cell for cell in cells if not _done(folder, cell)]
    failed: dict[str, str] = {}
    if waiting:
        progress.stage(f"running {len(waiting)} of {len(cells)} cells: methods times settings times seeds")
        with writing(folder):
            (folder / CELLS).mkdir(parents=True, exist_ok=True)
        at_once = min(len(waiting), jobs or usable_cores())
        threads = max(1, usable_cores() // at_once) if engine == "local" else 1
        arguments = [(cell.recipe, str((folder / CELLS / cell.name).resolve()), cell.name, threads) for cell in waiting]
        with contextlib.closing(run_all(run_cell, arguments, jobs=jobs, engine=engine, cluster=cluster)) as ended:
            for number, (name, error) in enumerate(ended, 1):
                if error:
                    failed[name] = error
                    progress.warn(Problem(f"cell {name}", error, "the others go on; the same command tries it again"))
                progress.step(number, len(waiting), name)
    else:
        progress.say("every cell is there already")
    progress.stage("comparing")
    board = board_of(finished(folder, cells), choice, failed)
    write_board(board, folder)
    return SweepResult(folder, board, failed, len(waiting))


def _refuse(folder: Path) -> None:
    """Refuse a folder that is not of a sweep, so that nothing of anyone else's is mixed up with it."""
    if folder.is_file():
        raise BadInput(Problem(f"--out {folder}", "is a file", "give the name of a folder"))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CELLS).is_dir():
        raise BadInput(Problem(f"--out {folder}", "is not empty and not the folder of a sweep", "give another folder"))


def _done(folder: Path, cell: Cell) -> bool:
    run = RunFolder(folder / CELLS / cell.name)
    return run.has(REPORT_JSON) and run.has(REPORT_HTML)


def finished(folder: Path, cells: Sequence[Cell]) -> list[ComparedRun]:
    """Read the reports of the cells that are finished, in the order of the cells."""
    return read_runs([folder / CELLS / cell.name for cell in cells if _done(folder, cell)])


def write_board(board: Board, folder: Path) -> None:
    """Write the leaderboard as a page, JSON, CSV and Markdown."""
    with writing(folder):
        write_text(folder / "leaderboard.html", board.to_html())
        write_text(folder / "leaderboard.json", json.dumps(board.to_dict(), ensure_ascii=False, indent=1) + "\n")
        write_text(folder / "leaderboard.csv", board.to_csv())
        write_text(folder / "leaderboard.md", board.to_markdown())


# ---- in the workers ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _shelf() -> Shelf:
    return Shelf()


def run_cell(recipe: Recipe, folder: str, name: str, threads: int) -> tuple[str, str]:
    """Run one cell in a worker process.

    Args:
        recipe: every setting resolved.
        folder: its run folder.
        name: what the cell is called.
        threads: for the mathematics of this process.

    Returns:
        (name, "" or why it failed).
    """
    import torch

    torch.set_num_threads(threads)
    try:
        done = run_job(recipe, folder, shelf=_shelf())
    except Exception as error:  # one cell must not stop the others, whatever it died of
        first = (str(error).strip() or "no message").splitlines()[0]
        return name, first if isinstance(error, BadInput) else f"{type(error).__name__}: {first}"
    assert done is not None
    return name, ""
