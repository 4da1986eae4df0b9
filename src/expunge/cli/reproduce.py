"""``expunge reproduce``: a paper's central claim, tried at small scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from expunge.cli.terminal import Shown, show, show_json, show_table, stopped
from expunge.errors import BadInput, Problem


def reproduce(
    name: str | None = typer.Argument(None, help="Which one; see --list.", metavar="[NAME]"),
    seeds: str | None = typer.Option(None, help="Seeds, separated by commas; the reproduction's own if left out."),
    quick: bool = typer.Option(False, "--quick", help="A smaller version that takes seconds, to see that it works."),
    out: Path = typer.Option(Path("runs/reproductions"), help="Folder for models and results.", metavar="FOLDER"),
    data: Path | None = typer.Option(
        None, envvar="EXPUNGE_DATA", help="Folder of published data, for those that use it.", metavar="FOLDER"
    ),
    listed: bool = typer.Option(False, "--list", help="List what can be reproduced, and leave."),
    table: Path | None = typer.Option(
        None, help="Print the table of the results (*.json) in this folder, and leave.", metavar="FOLDER"
    ),
    as_json: bool = typer.Option(False, "--json", help="Print as JSON."),
) -> None:
    """Try a paper's central claim at small scale and print what was measured.

    The exit code is 0 whichever way it comes out: that a claim does not hold here is a result. A second start goes on
    after the last finished seed.
    """
    if listed:
        _list(as_json)
        return
    if table is not None:
        from expunge.reproductions.table import read_results, to_markdown

        found = read_results(table)
        if as_json:
            show_json(found)
        else:
            print(to_markdown(found), end="")
        return
    if name is None:
        raise BadInput(Problem("NAME", "is missing", "name a reproduction; `expunge reproduce --list` lists them"))
    numbers = _seeds(seeds) if seeds is not None else ()
    with Shown() as progress:
        progress.stage("starting")
        from expunge.reproductions.runner import reproduce

        try:
            result = reproduce(name, seeds=numbers, quick=quick, out=out, data=data, progress=progress)
        except KeyboardInterrupt:
            stopped(f"{out} keeps the finished seeds; the same command goes on from there")
    if as_json:
        show_json(result.to_dict())
        return
    show(f"{result.name}: {result.title}\n{result.paper}\nClaim: {result.claim}\n")
    for check in result.checks:
        show(f"{'holds' if check.holds else 'DOES NOT HOLD'}: {check.claim}\n  {check.detail}")
    rows = [
        (key, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}" if e.low is not None else "-", str(e.n))
        for key, e in result.measured.items()
    ]
    show_table("", ("measured", "mean", "95 % interval", "seeds"), rows, numbers=(1, 3))
    said = "holds here" if result.holds else "does not hold here in every point"
    small = " This was the quick version; its numbers are not to be quoted." if result.quick else ""
    show(f"The claim {said}. {len(result.seeds)} seed(s), {result.minutes:.1f} minutes.{small}")


def _list(as_json: bool) -> None:
    from expunge.reproductions.runner import REPRODUCTIONS

    found: list[dict[str, Any]] = [
        {"name": r.id, "title": r.title, "paper": r.paper, "claim": r.claim, "seeds": list(r.seeds)}
        for r in REPRODUCTIONS.classes()
    ]
    if as_json:
        show_json(found)
    else:
        rows = [(f["name"], f["title"], f["paper"]) for f in found]
        show_table("", ("name", "what is tried", "paper"), rows, whole=True)
        show("`expunge reproduce NAME` runs one, `--list --json` shows claims.")


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise BadInput(Problem("--seeds", f"'{text}' is not a list of numbers", "write it like --seeds 0,1,2"))
    return tuple(int(part) for part in parts)
