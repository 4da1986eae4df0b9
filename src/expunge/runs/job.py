"""The jobs behind ``expunge unlearn`` and ``expunge audit``: from a recipe to a finished run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.audits.suite import run_audits
from expunge.methods.run import unlearn
from expunge.reports.html import write_html
from expunge.reports.model_card import CARD, write_model_card
from expunge.reports.report import MethodSummary, RunReport
from expunge.runs import facts, summary
from expunge.runs.audit import AuditReport, audit, conclude
from expunge.runs.check import Checked, check, device_of, loading_of
from expunge.runs.folder import CHECKPOINTS, FACTS, FORGOTTEN, REPORT_HTML, REPORT_JSON, RunFolder, writing
from expunge.runs.models import AnyModel, gather, model_path
from expunge.runs.progress import Progress
from expunge.runs.recipe import Recipe
from expunge.runs.shelf import Shelf
from expunge.training.journal import LOG


@dataclass(frozen=True)
class JobResult:
    """A finished run.

    Attributes:
        folder: everything that it wrote.
        report: the content of its report.
        diverged: whether training broke down, so that the model is the last good one; ``stop_reason`` says how.
        stop_reason: why training ended; "" where nothing was trained.
        kept: which weights the model has where training broke down, in words.
        repeated: whether everything was there already.
    """

    folder: RunFolder
    report: RunReport
    diverged: bool = False
    stop_reason: str = ""
    kept: str = ""
    repeated: bool = False

    @property
    def result(self) -> str:
        """The verdict: "removed", "not removed" or "inconclusive"."""
        return str((self.report.verdict or {}).get("result", "inconclusive"))


# ---- unlearn -------------------------------------------------------------------------------------------------------


def run_job(
    recipe: Recipe,
    out: str | Path,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    shelf: Shelf | None = None,
) -> JobResult | None:
    """Forget and prove: from a recipe to a folder with a model, a verdict and a report.

    The original model is never written to. Started again on the same folder, a run that was stopped goes on where it
    stopped, and a run that is finished is only read.

    Args:
        recipe: what to do.
        out: the run folder.
        progress: hears what is being done.
        overwrite: delete another run that is in the folder.
        shelf: models shared with other jobs of this process; the original and the oracles are taken from it.

    Returns:
        The result; None in all but the first of several processes (``torchrun``, ``accelerate launch``).

    Raises:
        BadInput: every problem that can be known before work starts, or another run is in the folder.
        ExpungeError: the disk is full.
    """
    progress = progress or Progress()
    first = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(out)
    progress.stage("checking")
    checked = check(recipe, folder if first else None, "unlearn", progress if first else None)
    with folder:
        if first:
            folder.open(checked.recipe.to_dict("unlearn"), _facts(checked), overwrite=overwrite)
        _wait(checked.recipe)
        if folder.has(REPORT_JSON) and folder.has(REPORT_HTML) and (folder.model / CARD).is_file():
            return _finished(folder) if first else None
        done = _forget(checked, folder, progress, first, shelf or Shelf())
        return _prove(checked, folder, done, progress, shelf) if first else None


def _wait(recipe: Recipe) -> None:
    """With several processes, let nobody go on before the folder is ready."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=device_of(recipe.device) == "cpu").wait_for_everyone()


def _finished(folder: RunFolder) -> JobResult:
    report = RunReport.from_json(folder.read_text(REPORT_JSON))
    return _result(folder, report, folder.read_json(FORGOTTEN), repeated=True)


def _result(folder: RunFolder, report: RunReport, done: Mapping[str, Any], repeated: bool = False) -> JobResult:
    training = done["training"] or {}
    reason, diverged = str(training.get("stop_reason", "")), bool(training.get("diverged"))
    return JobResult(folder, report, diverged, reason, _kept(training) if diverged else "", repeated)


def _kept(training: Mapping[str, Any]) -> str:
    """Say which weights are left after training broke down."""
    if not training["kept_step"]:
        return "the model is the original, unchanged"
    if training["kept_step"] < training["steps"]:
        return f"the model is the last good one, after step {training['kept_step']}"
    return f"the model has the weights after step {training['steps']}, the last finite ones"


def _forget(checked: Checked, folder: RunFolder, progress: Progress, first: bool, shelf: Shelf) -> dict[str, Any]:
    recipe = checked.recipe
    if folder.has(FORGOTTEN) and folder.model.is_dir():
        progress.say(f"the new model is already in {folder.model}")
        return folder.read_json(FORGOTTEN)
    progress.stage(f"loading {recipe.model}")
    task = shelf.get(recipe.model, **loading_of(recipe))
    oracle = None
    if recipe.settings.get("stop", {}).get("forget_target") == "oracle":
        oracle = shelf.get(recipe.oracle[0], **loading_of(recipe))
    if first and not any((folder / CHECKPOINTS).glob("step-*")):
        (folder / LOG).unlink(missing_ok=True)  # lines of a run that left no state to go on from
    progress.stage(f"forgetting with {recipe.method}")
    with writing(folder.path):
        outcome = unlearn(
            task,
            checked.request,
            recipe.method,
            settings=recipe.settings,
            folder=folder.path,
            oracle=oracle,
            progress=progress.step,
        )
        done = summary.forgotten(outcome)
        if first:
            progress.stage(f"saving {folder.model}")
            outcome.save(folder.model)
            folder.write_json(FORGOTTEN, done)
            folder.drop_checkpoints()
    return done


def _prove(
    checked: Checked, folder: RunFolder, done: Mapping[str, Any], progress: Progress, shelf: Shelf | None
) -> JobResult:
    recipe, request = checked.recipe, checked.request
    assert checked.method is not None
    progress.stage("loading models to compare")
    # What is judged is what was saved, not what was in memory.
    loading = loading_of(recipe)
    others: list[AnyModel] = [recipe.model, *recipe.oracle]
    if shelf is not None:
        others = [shelf.get(str(path), **loading) for path in others]
    models = gather(folder.model, others[0], others[1:], **loading)
    progress.stage("asking the models")
    result = run_audits(
        models,
        request,
        recipe.audits,
        settings=recipe.audit_settings,
        limits=recipe.audit_limits,
        progress=lambda what, step, total: progress.step(step, total, what),
        seed=recipe.seed,
    )
    progress.stage("weighing the evidence and writing the report")
    known = folder.read_json(FACTS)
    oracles = {f"oracle-{k}" if k > 1 else "oracle": path for k, path in enumerate(recipe.oracle, 1)}
    paths = {"unlearned": str(folder.model), "original": recipe.model, **oracles}
    cost = {"forgetting": done["cost"]}
    if done["probe_cost"]["forwards"]:
        cost["audits while forgetting"] = done["probe_cost"]
    report = RunReport(
        title=f"Forgetting “{request.name}”",
        created=known["started"],
        request=summary.request_summary(request),
        removal_level=done["removal_level"],
        models={name: summary.model_summary(m, str(model_path(paths[name]))) for name, m in models.items()},
        method=MethodSummary(recipe.method, dict(recipe.settings), type(checked.method).paper),
        training=summary.training_summary(done, models["unlearned"]),
        recipe=recipe.to_dict("unlearn"),
        versions=known["versions"],
        hardware=known["hardware"],
        seeds={"all": recipe.seed},
        cost=cost,
        notes=[*_notes(checked, done, known), *([] if shelf is None else [_SHARED])],
    )
    full = conclude(report, request, result, checked.verdict).report
    full = replace(
        full, notes=[*full.notes, *summary.still_notes(full.verdict or {}, done["training"] and done["train"])]
    )
    if (again := _retraining(recipe)) is not None:
        full = replace(full, cost={**full.cost, "retraining": again})
    with writing(folder.path):
        write_model_card(full, folder.model)
        write_html(full, folder / REPORT_HTML)
        full.write_json(folder / REPORT_JSON)
    return _result(folder, full, done)


_SHARED = (
    "The original and the oracles were shared with other runs: what they had answered before was not asked again, and "
    "is not in the cost of proving."
)


def _notes(checked: Checked, done: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    notes = summary.limit_notes(checked.request, checked.recipe.audit_limits, checked.recipe.seed)
    training = done["training"] or {}
    if training.get("diverged"):
        kept = _kept(training)
        notes.append(f"Training broke down ({training['stop_reason']}): {kept}.")
    if training.get("resumed_from") is not None:
        notes.append(
            f"The run was stopped and resumed after step {training['resumed_from']}; costs count from there on."
        )
    if known["versions"] != facts.versions():
        notes.append("The run was resumed with other versions of the software than it was started with.")
    return notes


def _retraining(recipe: Recipe) -> dict[str, float] | None:
    """Return what retraining cost, if an oracle lies in the run folder that made it."""
    for path in recipe.oracle:
        for place in (Path(path), Path(path).parent):
            run = RunFolder(place)
            if run.has(FORGOTTEN):
                made = run.read_json(FORGOTTEN)
                if made.get("method") == "retrain" and (made["training"] or {}).get("resumed_from") is None:
                    return dict(made["cost"])
    return None


# ---- audit ---------------------------------------------------------------------------------------------------------


def run_audit_job(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    removal_level: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> AuditReport:
    """Prove only: from a recipe to a verdict, and to a folder with a report if one is named.

    Args:
        recipe: ``model`` is the one to judge, ``original`` and ``oracle`` what it is compared with.
        out: the run folder; None writes nothing.
        removal_level: as in ``audit``.
        progress: hears what is being done.
        overwrite: delete another run that is in the folder.

    Raises:
        BadInput: every problem that can be known before work starts, or another run is in the folder.
        ExpungeError: the disk is full.
    """
    progress = progress or Progress()
    folder = RunFolder(out) if out is not None else None
    progress.stage("checking")
    checked = check(recipe, folder, "audit", progress)
    recipe = checked.recipe
    known = _facts(checked)
    if folder is not None:
        folder.open(recipe.to_dict("audit"), known, overwrite=overwrite)
    try:
        found = audit(
            recipe.model,
            checked.request,
            original=recipe.original,
            oracles=recipe.oracle,
            audits=recipe.audits,
            settings=recipe.audit_settings,
            removal_level=removal_level,
            limits=recipe.audit_limits,
            verdict=checked.verdict,
            progress=progress,
            seed=recipe.seed,
            **loading_of(recipe),
        )
        found = replace(found, report=replace(found.report, recipe=recipe.to_dict("audit")))
        if folder is not None:
            with writing(folder.path):
                found.to_html(folder / REPORT_HTML)
                found.report.write_json(folder / REPORT_JSON)
    finally:
        if folder is not None:
            folder.close()
    return found


def _facts(checked: Checked) -> dict[str, Any]:
    return {
        "started": facts.now(),
        "versions": facts.versions(),
        "hardware": facts.hardware(),
        "hashes": dict(checked.hashes),
    }
