"""``expunge import``: runs of other tools, read and measured again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from expunge.cli.terminal import Shown, paragraphs, say, show, show_json, show_table
from expunge.errors import BadInput, Problem

if TYPE_CHECKING:
    from expunge.benchmarks.open_unlearning_result import Comparison

MODELS, DATA, OUTPUT = "Models", "Data", "Output"

imports = typer.Typer(no_args_is_help=True)


@imports.callback()
def start() -> None:
    """Read the runs of another tool and measure them again."""


def open_unlearning(
    folders: list[Path] | None = typer.Argument(
        None,
        help="A run folder of theirs (saves/unlearn/TASK, saves/eval/TASK) or a checkpoint; then, if there is one, "
        "that of the model trained without the forget set.",
        metavar="RUN_OR_CHECKPOINTS",
    ),
    model: str | None = typer.Option(
        None, help="Weights, where the run folder has none: a folder or hub name.", rich_help_panel=MODELS
    ),
    reference: str | None = typer.Option(
        None, help="Weights of the model trained without the forget set.", rich_help_panel=MODELS, metavar="MODEL"
    ),
    original: str | None = typer.Option(
        None, help="The model before unlearning; our verdict needs it.", rich_help_panel=MODELS, metavar="MODEL"
    ),
    model_config: Path | None = typer.Option(
        None,
        help="Their configs/model/NAME.yaml: how questions are put. Left out: what the run says, else the chat "
        "template of the tokenizer, what Expunge stored with the model, or Question and Answer.",
        rich_help_panel=MODELS,
        metavar="FILE",
    ),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16.", rich_help_panel=MODELS),
    device: str = typer.Option("cpu", help="cpu, cuda or cuda:1.", rich_help_panel=MODELS),
    split: str | None = typer.Option(
        None,
        help="forget01, forget05 or forget10 of TOFU, News or Books of MUSE; what the run says if left out.",
        rich_help_panel=DATA,
    ),
    data: str | None = typer.Option(
        None,
        help="Folder of TOFU's or MUSE's files; $EXPUNGE_DATA or the hub if left out.",
        rich_help_panel=DATA,
        metavar="FOLDER",
    ),
    holdout: str | None = typer.Option(
        None,
        help="Examples that no model saw, for membership and PrivLeak on TOFU.",
        rich_help_panel=DATA,
        metavar="DATA",
    ),
    metric: list[str] = typer.Option([], help="Recompute only this one; repeatable.", metavar="NAME"),
    out: Path | None = typer.Option(
        None, help="Folder for results.json and page.md; nothing is written without.", rich_help_panel=OUTPUT
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON.", rich_help_panel=OUTPUT),
) -> None:
    """Put open-unlearning's numbers beside ours, and list the conclusions that change.

    Reads a run folder with its TOFU_EVAL.json or MUSE_EVAL.json, or one or two checkpoints. From weights, their metrics
    are recomputed by their definition and by ours; without weights, their results are checked against their own
    per-example values.
    """
    from expunge.benchmarks.open_unlearning import Asked, compare_run

    given = list(folders or ())
    if len(given) > 2:
        what = f"names {len(given)} folders"
        fix = "give one, or two: the model, then the one trained without the forget set"
        raise BadInput(Problem("RUN_OR_CHECKPOINTS", what, fix))
    run, retained = [*given, None, None][:2]
    asked = Asked(
        run, retained, model, reference, original, split, data, holdout, model_config, tuple(metric), dtype, device
    )
    with Shown() as progress:
        found = compare_run(asked, progress)
    if out is not None:
        found.write(out)
    if as_json:
        show_json(found.to_dict())
        return
    _show(found)
    if out is not None:
        show(f"Page: {out / 'page.md'}")


imports.command("open-unlearning", help=paragraphs(open_unlearning))(open_unlearning)


def _show(found: Comparison) -> None:
    """Print the tables and the conclusions that change."""
    from expunge.benchmarks.open_unlearning_result import shown

    if found.facts.get("not_recomputed"):
        say(f"Nothing was recomputed: {found.facts['not_recomputed']}.")
    for title, rows in (("Model", found.rows), ("Model trained without the forget set", found.retained_rows)):
        if rows:
            show_table(
                title,
                ("metric", "logged", "recomputed", "ours", "ours − theirs"),
                [
                    (r.metric, shown(r.logged), shown(r.recomputed), shown(r.ours.value), shown(r.difference))
                    for r in rows
                ],
                numbers=(1, 2, 3, 4),
            )
    if found.conclusions:
        changed = found.changed
        show(f"Conclusions that change: {len(changed)} of {len(found.conclusions)}")
        for one in changed:
            show(f"- {one.metric}: {one.question}\n  theirs: {one.theirs}\n  ours:   {one.ours}")
    touched = [one for one in found.effects if one.touched]
    if touched:
        show("\nWhat their slips touch")
        for effect in touched:
            show(f"- {effect.name}: {effect}")
    wrong = [row for row in found.checks if row.agrees is False]
    if found.checks and not found.rows:
        cells = [(r.metric, shown(r.logged), shown(r.follows.value), {True: "yes", False: "no", None: "-"}[r.agrees])
                 for r in found.checks]  # fmt: skip
        show_table("Their results by themselves", ("metric", "logged", "follows", "agrees"), cells, numbers=(1, 2))
    elif wrong:
        show(f"\nLogged, but not what follows from their own examples: {', '.join(row.metric for row in wrong)}")
    for row in found.checks:
        for note in row.notes:
            show(f"- {row.metric}: {note}")
