"""``expunge bench``: published protocols."""

from __future__ import annotations

from pathlib import Path

import typer

from expunge.cli.terminal import Shown, show, show_json
from expunge.errors import BadInput, Problem

bench = typer.Typer(help="Run a published protocol and compare methods.", no_args_is_help=True)


@bench.callback()
def start() -> None:
    """Run a published protocol and compare methods."""


@bench.command("tofu")
def tofu(
    data: str | None = typer.Option(
        None, help="Folder of the TOFU files; $EXPUNGE_DATA/tofu or the hub if left out.", metavar="FOLDER"
    ),
    split: list[str] = typer.Option(["forget01"], help="forget01, forget05 or forget10; repeatable."),
    methods: str = typer.Option(
        "retrain,finetune,gradient_ascent,grad_diff,npo,simnpo", help="Methods, separated by commas."
    ),
    seeds: str = typer.Option("0,1,2", help="Seeds, separated by commas."),
    model: str | None = typer.Option(None, help="Model trained on all of TOFU; trained here if left out."),
    oracle: list[str] = typer.Option([], help="Model trained without the split; repeatable."),
    out: Path = typer.Option(Path("runs/tofu"), help="Folder for models and tables.", metavar="FOLDER"),
    kept: int | None = typer.Option(None, min=1, help="Use only so many of the kept rows; all if left out."),
    audited: int = typer.Option(100, min=8, help="Kept, author and fact rows that audits read, each."),
    jobs: int | None = typer.Option(None, min=1, help="Processes at a time; one per core if left out."),
    overrides: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="A setting of all methods; repeatable."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Run the TOFU protocol: methods times seeds, at matched forgetting."""
    numbers = _seeds(seeds)
    with Shown() as progress:
        progress.stage("starting")
        from expunge.benchmarks.tofu import run_tofu

        result = run_tofu(
            data=data,
            splits=tuple(split),
            methods=tuple(part.strip() for part in methods.split(",") if part.strip()),
            seeds=numbers,
            model=model,
            oracles=tuple(oracle),
            overrides=tuple(overrides),
            out=out,
            kept=kept,
            audited=audited,
            jobs=jobs,
            progress=progress,
        )
    if as_json:
        show_json(result.to_dict())
    else:
        show(result.to_markdown())


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise BadInput(Problem("--seeds", f"'{text}' is not a list of numbers", "write it like --seeds 0,1,2"))
    return tuple(int(part) for part in parts)
