"""``expunge forget-sets``: choose which examples of a training set to forget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from expunge.cli.jobs import DATA, HOW, MODELS, OUTPUT, Augment, Chat, Device, Dtype, Factory, MaxLength, Template
from expunge.cli.listing import fields, show_found
from expunge.cli.terminal import Shown, show, show_json, stopped
from expunge.errors import BadInput, Problem

if TYPE_CHECKING:
    from expunge.forget_sets.base import ForgetSetSelector


def forget_sets(
    selector: str | None = typer.Argument(None, help="How to choose; without --data, its settings.", metavar="[NAME]"),
    data: str | None = typer.Option(None, help="The training set.", rich_help_panel=DATA, metavar="DATA"),
    holdout: str | None = typer.Option(
        None, help="Examples that the model never saw.", rich_help_panel=DATA, metavar="DATA"
    ),
    inputs: Literal["image", "text", "tabular", "prompts"] | None = typer.Option(
        None,
        help="How the data are read where no model says so: image, text, tabular or prompts.",
        rich_help_panel=DATA,
        metavar="KIND",
    ),
    name: str | None = typer.Option(None, help="A label for reports.", rich_help_panel=DATA),
    duplicates: Literal["refuse", "drop"] = typer.Option(
        "refuse", help="Examples that repeat: refuse or drop.", rich_help_panel=DATA
    ),
    model: str | None = typer.Option(
        None, help="Folder or hub name of the model trained on it.", rich_help_panel=MODELS, metavar="MODEL"
    ),
    factory: str | None = Factory,
    augment: str | None = Augment,
    max_length: int | None = MaxLength,
    template: str | None = Template,
    chat: str | None = Chat,
    dtype: str | None = Dtype,
    device: str | None = Device,
    share: float | None = typer.Option(None, help="Share of the units to forget.", rich_help_panel=HOW),
    count: int | None = typer.Option(None, help="How many units to forget.", rich_help_panel=HOW),
    overrides: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="A setting of the selector, or columns.NAME; repeatable."
    ),
    seed: int = typer.Option(0, min=0, help="Everything random follows from it.", rich_help_panel=HOW),
    out: Path | None = typer.Option(
        None, help="Folder; forget_sets/NAME if left out.", rich_help_panel=OUTPUT, metavar="FOLDER"
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Replace another forget set that is in the folder.", rich_help_panel=OUTPUT
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON.", rich_help_panel=OUTPUT),
) -> None:
    """Choose what to forget: at random, whole classes, worst case, easiest, by margin.

    Writes the files of a request that any method takes. Started again on the same folder, a stopped search goes on
    where it was. Without --data, lists what can choose.
    """
    if selector is None or data is None:
        asked = {"--holdout": holdout, "--model": model, "--share": share, "--count": count, "--out": out,
                 "--set": overrides or None}  # fmt: skip
        meant = [flag for flag, value in asked.items() if value is not None]
        if data is None and meant:
            raise BadInput(Problem("--data", f"is missing, and {', '.join(meant)} given", "give the training set"))
        _list(selector, data, as_json)
        return
    sized = {key: value for key, value in (("share", share), ("count", count)) if value is not None}
    settings, columns = _settings(overrides)
    loading = {"factory": factory, "augment": augment, "max_length": max_length, "template": template, "chat": chat,
               "dtype": dtype, "device": device}  # fmt: skip
    folder = out if out is not None else Path("forget_sets") / selector
    with Shown() as progress:
        progress.stage("starting")
        from expunge.runs.forget_set import write_forget_set

        try:
            done = write_forget_set(
                selector, data, folder, model=model, holdout=holdout, inputs=inputs, settings={**settings, **sized},
                columns=columns, duplicates=duplicates, seed=seed, name=name, overwrite=overwrite, progress=progress,
                **loading,
            )  # fmt: skip
        except KeyboardInterrupt:
            stopped(f"{folder} keeps what was found; the same command goes on from there")
    if as_json:
        show_json(done.to_dict())
        return
    found = done.to_dict()
    sizes = ", ".join(f"{role} {n}" for role, n in found["examples"].items())
    show(f"{found['count']} {'classes' if found['unit'] == 'class' else 'examples'} chosen by {selector}: {sizes}")
    if found["history"]:
        last = found["history"][-1]
        show(
            f"Loss under the unlearned model: {last['chosen_loss']:.3g} on those chosen, {last['mean_loss']:.3g} on "
            f"all; {last['same_as_before']:.0%} of the choice was the same an iteration before."
        )
    show(f"Files: {folder}\nTo forget it:")
    print(f"  {done.command}", flush=True)  # on one line, as it is copied


def _settings(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    from expunge.runs.recipe import read_recipe

    recipe = read_recipe(None, {"model": "-", "forget": "-"}, overrides)
    if recipe.audit_settings or recipe.verdict or recipe.audit_limits:
        raise BadInput(Problem("--set", "names settings of audits, which do not run here", "leave them out"))
    return dict(recipe.settings), dict(recipe.columns)


def _list(selector: str | None, data: str | None, as_json: bool) -> None:
    from expunge.forget_sets.base import FORGET_SETS

    if selector is None and data is not None:
        raise BadInput(Problem("NAME", "nothing says how to choose", f"name one of {', '.join(FORGET_SETS.names())}"))
    chosen = FORGET_SETS.classes() if selector is None else [FORGET_SETS.get(selector)]
    found = [describe_selector(one) for one in chosen]
    show_found(
        found,
        selector is not None,
        as_json,
        {"what it chooses": "title", "needs": "needs"},
        ["`expunge forget-sets NAME` lists settings, `--json` everything; with --data DATA it chooses."],
        {"Settings, given as --set KEY=VALUE": "settings"},
        "the training set only",
    )


def describe_selector(selector: type[ForgetSetSelector]) -> dict[str, Any]:
    """Return what can be known of a selector without running it."""
    return {
        "name": selector.id,
        "title": selector.title,
        "tasks": list(selector.tasks),
        "needs": ["model"] if selector.needs_model else [],
        "paper": selector.paper,
        "module": selector.__module__,
        "settings": fields(selector.Config()),
    }
