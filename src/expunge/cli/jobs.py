"""``expunge unlearn`` and ``expunge audit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from expunge.cli.results import check_required, finish, show_report
from expunge.cli.terminal import Shown, stopped
from expunge.errors import BadInput, Problem

if TYPE_CHECKING:
    from expunge.runs.recipe import Command, Recipe

DATA, MODELS, HOW, OUTPUT = "What to forget", "Models", "How", "Output"

Recipes = typer.Option(
    None, "--recipe", help="YAML file with any of these options; options win over it.", metavar="FILE"
)
_KEYS = "audits.NAME.KEY, verdict.KEY, limits.ROLE, columns.NAME or splits.ROLE; repeatable."
Set = typer.Option(
    [], "--set", metavar="KEY=VALUE", help=f"A setting of the method or of training (beta, stop.every), {_KEYS}"
)
SetAudit = typer.Option([], "--set", metavar="KEY=VALUE", help=f"A setting: {_KEYS}")
Forget = typer.Option(
    None, help="Examples to delete: a file, a folder or a hub name.", rich_help_panel=DATA, metavar="DATA"
)
Retain = typer.Option(None, help="Examples whose knowledge must stay.", rich_help_panel=DATA, metavar="DATA")
Holdout = typer.Option(None, help="Examples that the model never saw.", rich_help_panel=DATA, metavar="DATA")
Name = typer.Option(None, help="A label for reports.", rich_help_panel=DATA)
Scenario = typer.Option(
    None,
    help="What is forgotten: examples, class, group, range, corrupted, concept, entity or behaviour.",
    rich_help_panel=DATA,
)
Duplicates = typer.Option(None, help="Examples that repeat: refuse or drop.", rich_help_panel=DATA)
Oracle = typer.Option(
    [],
    help="A model trained without the forget set, or its run folder; repeatable.",
    rich_help_panel=MODELS,
    metavar="MODEL",
)
Dtype = typer.Option(None, help="float32, bfloat16 or float16.", rich_help_panel=MODELS)
Device = typer.Option(None, help="auto, cpu, cuda or cuda:1.", rich_help_panel=MODELS)
Template = typer.Option(None, help="How prompt and answer are joined: '{prompt} {answer}'.", rich_help_panel=MODELS)
Chat = typer.Option(None, help="Chat template of the tokenizer: auto, always or never.", rich_help_panel=MODELS)
Factory = typer.Option(
    None,
    help="Function that made a plain torch module, as module:function; its code is run.",
    rich_help_panel=MODELS,
    metavar="NAME",
)
Augment = typer.Option(
    None, help="What training changes in images: none, flip, shift or flip_shift.", rich_help_panel=MODELS
)
MaxLength = typer.Option(None, help="Longest example in tokens.", rich_help_panel=MODELS)
Audits = typer.Option([], "--audit", help="Run only this audit; repeatable.", rich_help_panel=HOW, metavar="NAME")
Seed = typer.Option(None, help="Everything random follows from it.", rich_help_panel=HOW)
Overwrite = typer.Option(False, "--overwrite", help="Delete another run that is in the folder.", rich_help_panel=OUTPUT)
Require = typer.Option(None, help="Leave with exit code 3 if the verdict is another one.", rich_help_panel=OUTPUT)
Json = typer.Option(False, "--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)


def unlearn(
    recipe: Path | None = Recipes,
    model: str | None = typer.Option(
        None, help="Folder or hub name of the model; it is never written to.", rich_help_panel=MODELS, metavar="MODEL"
    ),
    forget: str | None = Forget,
    retain: str | None = Retain,
    holdout: str | None = Holdout,
    name: str | None = Name,
    scenario: str | None = Scenario,
    duplicates: str | None = Duplicates,
    oracle: list[str] = Oracle,
    dtype: str | None = Dtype,
    device: str | None = Device,
    template: str | None = Template,
    chat: str | None = Chat,
    max_length: int | None = MaxLength,
    factory: str | None = Factory,
    augment: str | None = Augment,
    method: str | None = typer.Option(None, help="How to forget; see `expunge methods`.", rich_help_panel=HOW),
    overrides: list[str] = Set,
    audits: list[str] = Audits,
    seed: int | None = Seed,
    out: Path | None = typer.Option(
        None, help="Run folder; runs/NAME-METHOD if left out.", rich_help_panel=OUTPUT, metavar="FOLDER"
    ),
    overwrite: bool = Overwrite,
    require: Literal["removed"] | None = Require,
    as_json: bool = Json,
) -> None:
    """Forget, then prove: a new model, a verdict and a report.

    Started again on the same folder, a stopped run goes on where it was.
    """
    given = {"model": model, "forget": forget, "retain": retain, "holdout": holdout, "name": name, "scenario": scenario,
             "duplicates": duplicates, "oracle": oracle, "dtype": dtype, "device": device, "template": template,
             "chat": chat, "max_length": max_length, "factory": factory, "augment": augment,
             "method": method, "audits": audits, "seed": seed}  # fmt: skip
    asked = _read(recipe, given, overrides, "unlearn", out)
    folder = out if out is not None else Path("runs") / f"{_file_name(asked.name)}-{_file_name(asked.method)}"
    with Shown() as progress:
        progress.stage("starting")
        from expunge.runs.job import run_job

        try:
            done = run_job(asked, folder, progress=progress, overwrite=overwrite)
        except KeyboardInterrupt:
            again = f"expunge unlearn --recipe {folder}/recipe.yaml --out {folder}"
            kept = (folder / "recipe.yaml").is_file()
            stopped(f"{folder} keeps what was done; to go on:\n  {again}" if kept else "Nothing was written.")
    if done is not None:
        finish(done, as_json, require)


def audit(
    recipe: Path | None = Recipes,
    model: str | None = typer.Option(
        None, help="The model to judge: folder, run folder or hub name.", rich_help_panel=MODELS, metavar="MODEL"
    ),
    original: str | None = typer.Option(
        None, help="The model before unlearning.", rich_help_panel=MODELS, metavar="MODEL"
    ),
    forget: str | None = Forget,
    retain: str | None = Retain,
    holdout: str | None = Holdout,
    name: str | None = Name,
    scenario: str | None = Scenario,
    duplicates: str | None = Duplicates,
    oracle: list[str] = Oracle,
    dtype: str | None = Dtype,
    device: str | None = Device,
    template: str | None = Template,
    chat: str | None = Chat,
    max_length: int | None = MaxLength,
    factory: str | None = Factory,
    augment: str | None = Augment,
    removal_level: str | None = typer.Option(
        None,
        help="How the model was made: guard, adapter, approximate, exact or unknown; read from the model's folder if "
        "left out.",
        rich_help_panel=MODELS,
    ),
    overrides: list[str] = SetAudit,
    audits: list[str] = Audits,
    seed: int | None = Seed,
    out: Path | None = typer.Option(
        None, help="Folder for the report; nothing is written without one.", rich_help_panel=OUTPUT, metavar="FOLDER"
    ),
    overwrite: bool = Overwrite,
    require: Literal["removed"] | None = Require,
    as_json: bool = Json,
) -> None:
    """Prove only: judge a model, however it was made."""
    given = {"model": model, "original": original, "forget": forget, "retain": retain, "holdout": holdout, "name": name,
             "scenario": scenario, "duplicates": duplicates, "oracle": oracle, "dtype": dtype, "device": device,
             "template": template, "chat": chat, "max_length": max_length, "factory": factory,
             "augment": augment, "audits": audits, "seed": seed}  # fmt: skip
    asked = _read(recipe, given, overrides, "audit", out)
    with Shown() as progress:
        progress.stage("starting")
        from expunge.runs.job import run_audit_job

        found = run_audit_job(asked, out, removal_level=removal_level, progress=progress, overwrite=overwrite)
    show_report(found.report, out, as_json)
    check_required(require, found.verdict.result)


def _read(
    recipe: Path | None, given: dict[str, Any], overrides: Sequence[str], command: Command, out: Path | None
) -> Recipe:
    """Put the recipe together; if something is wrong with it, check the rest as well and report all of it."""
    from expunge.runs.recipe import try_read_recipe

    found, problems = try_read_recipe(recipe, given, overrides, command=command)
    if problems and found is not None:
        from expunge.runs.check import check
        from expunge.runs.folder import RunFolder

        try:
            check(found, RunFolder(out) if out is not None else None, command)
        except BadInput as error:
            problems += error.problems
    if problems or found is None:
        raise BadInput(list(dict.fromkeys(problems)))
    return found


def _file_name(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")
    if not kept:
        raise BadInput(Problem("name", f"{text!r} makes no folder name", "give --out FOLDER"))
    return kept
