"""``expunge demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from expunge.cli.results import finish
from expunge.cli.terminal import Shown, stopped


def demo(
    out: Path = typer.Option(Path("runs/demo"), help="Folder for data, models and the run.", metavar="FOLDER"),
    people: int = typer.Option(60, help="Fictitious people in the world, at least 20."),
    seed: int = typer.Option(0, min=0, help="Everything random follows from it."),
    method: str = typer.Option("npo", help="How to forget; see `expunge methods`."),
    oracles: int = typer.Option(2, help="Models retrained without the forgotten people; 2 measure seed noise."),
    overrides: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="As for `expunge unlearn`; repeatable."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Delete another run that is in the folder."),
    require: Literal["removed"] | None = typer.Option(None, help="Exit code 3 if the verdict is another one."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Train a small model on fictitious people, forget some of them, prove it.

    Needs no network and no data; takes about two minutes on two cores.
    """
    with Shown() as progress:
        progress.stage("starting")
        from expunge.runs.demo import run_demo

        try:
            done = run_demo(
                out,
                people=people,
                seed=seed,
                method=method,
                overrides=overrides,
                oracles=oracles,
                progress=progress,
                overwrite=overwrite,
            )
        except KeyboardInterrupt:
            stopped(f"{out} keeps what was done; the same command goes on from there")
    finish(done, as_json, require)
