"""The whole job of choosing a forget set: from files to the files of a request, whole at every moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from datasets import Dataset

from expunge.data.files import Duplicates, try_read_examples
from expunge.data.labelled import Inputs, try_read_labelled
from expunge.errors import BadInput, Problem, tried
from expunge.forget_sets.base import ForgetSet, Hold
from expunge.forget_sets.select import configured, select_forget_set
from expunge.requests.labelled import labelled_preflight
from expunge.requests.places import SOURCE_FILE, SOURCE_LINE
from expunge.runs import facts
from expunge.runs.check import described, loading_of
from expunge.runs.folder import RunFolder, writing
from expunge.runs.models import model_path
from expunge.runs.progress import Progress
from expunge.runs.recipe import Recipe, differences, read_recipe, to_yaml
from expunge.tasks.base import Task
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.loading import load_task
from expunge.tasks.reading import Reading

RESULT, REQUEST, SEARCH = "forget_set.json", "request.yaml", "search.json"
Given = Literal["image", "text", "tabular", "prompts"]
T = TypeVar("T")


@dataclass(frozen=True)
class Written:
    """A forget set on disk.

    Attributes:
        folder: holds ``forget.parquet``, ``retain.parquet``, ``holdout.parquet`` (or ``test.parquet``, see
            ``ForgetSet.test``) where there is one, ``request.yaml`` for ``expunge unlearn --recipe`` and
            ``forget_set.json``.
        found: what stands in ``forget_set.json``.
    """

    folder: Path
    found: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The command that forgets this set."""
        model = self.found["job"]["model"] or "MODEL"
        return f"expunge unlearn --recipe {self.folder / REQUEST} --model {model} --method METHOD"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; scores are in the file."""
        kept = {key: value for key, value in self.found.items() if key != "scores"}
        files = {role: str(self.folder / f"{role}.parquet") for role in self.found["examples"]}
        return {**kept, "folder": str(self.folder), "files": files, "command": self.command}


def write_forget_set(
    selector: str,
    data: str,
    out: str | Path,
    *,
    model: str | None = None,
    holdout: str | None = None,
    inputs: Given | None = None,
    settings: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "refuse",
    seed: int = 0,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **loading: Any,
) -> Written:
    """Choose a forget set and write it, or go on with a search that was stopped, or return what is finished.

    Args:
        selector: id, see ``expunge forget-sets``.
        data: the training set: whatever ``expunge unlearn --forget`` reads.
        out: folder.
        model: trained on all of it; folder or hub name. Only selectors that ask a model need one.
        holdout: examples that it never saw.
        inputs: how the data are read where no model says so.
        settings: of the selector.
        columns, duplicates: see ``read_request``.
        seed: everything random follows from it.
        name: a label for reports.
        overwrite: replace another forget set that is in the folder.
        progress: hears what is being done.
        loading: fields of a recipe that say how the model is loaded: factory, augment, max_length, template, chat,
            dtype, device.

    Raises:
        BadInput: everything that is wrong with the job, before any compute.
    """
    progress = progress or Progress()
    folder = Path(out)
    problems: list[Problem] = []
    chosen = tried(problems, "forget set", lambda: configured(selector, settings))
    recipe = _recipe(model, data, holdout, seed, columns, duplicates, loading, problems)
    reading = (
        tried(problems, "forget set", lambda: described(recipe)) if recipe is not None and model is not None else None
    )
    if chosen is not None and chosen.needs_model and model is None:
        problems += chosen.model_problems(None)
    sets = _read(recipe, reading if isinstance(reading, Reading) else None, reading is not None, inputs, problems)
    kind = None if reading is None else reading.kind if isinstance(reading, Reading) else "causal_lm"
    if chosen is not None and "data" in sets:
        found = chosen.problems(sets["data"], kind)
        # A model that cannot be described was reported already.
        problems += [p for p in found if not (model is not None and reading is None and "asks a model" in p.what)]
    if "data" in sets and isinstance(reading, Reading) and not problems:
        tried(problems, "forget set", lambda: reading.encode(sets["data"]))
    problems += _folder_problems(folder, {"data": data, "holdout": holdout, "model": model})
    if problems or chosen is None or recipe is None:
        raise BadInput(list(dict.fromkeys(problems)))
    label = name or f"{chosen.id} forget set"
    job = {
        "selector": chosen.id, "settings": chosen.config.model_dump(mode="json"), "data": data, "holdout": holdout,
        "model": model, "inputs": inputs, "columns": dict(columns or {}), "duplicates": duplicates, "seed": seed,
        "name": label, "loading": {k: v for k, v in loading.items() if v is not None},
    }  # fmt: skip
    state = {"job": job, "hashes": _hashes(data, holdout, model)}
    files, stored = RunFolder(folder), _stored(folder, state, overwrite)
    if stored is not None and stored["status"] == "done":
        progress.say(f"{folder} holds this forget set already; nothing was done again.")
        return Written(folder, stored)
    task = None
    if chosen.needs_model:
        assert model is not None
        progress.stage(f"loading {model}")
        task = load_task(model_path(model), **loading_of(recipe))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if stored is None:
        (folder / SEARCH).unlink(missing_ok=True)
        files.write_json(RESULT, {"status": "searching", **state})
    progress.stage(f"choosing with {chosen.id}")
    result = select_forget_set(
        sets["data"],
        chosen,
        task,
        unseen=sets.get("holdout"),
        seed=seed,
        hold=_hold(files),
        heard=progress.step,
    )
    for problem in labelled_preflight(result.request):
        if problem.severity == "warning":
            progress.warn(problem)
    if result.test is not None:
        what = "is easier or harder than what was chosen, so that it is a test set and no control"
        fix = "compare with a model retrained without the set: --oracle MODEL"
        progress.warn(Problem("holdout", what, fix, "warning"))
    progress.stage(f"writing {folder}")
    return Written(folder, _write(files, state, result, recipe, label, task))


def _recipe(
    model: str | None,
    data: str,
    holdout: str | None,
    seed: int,
    columns: Mapping[str, str] | None,
    duplicates: str,
    loading: Mapping[str, Any],
    problems: list[Problem],
) -> Recipe | None:
    """Return the settings that an unlearning run would read the same files with."""
    given = {"model": model or "-", "forget": data, "holdout": holdout, "seed": seed, "columns": dict(columns or {}),
             "duplicates": duplicates, **loading}  # fmt: skip
    return tried(problems, "forget set", lambda: read_recipe(None, given))


def _read(
    recipe: Recipe | None, reading: Reading | None, has_model: bool, inputs: Given | None, problems: list[Problem]
) -> dict[str, Dataset]:
    if recipe is None:
        return {}
    kind = reading.inputs.name if reading is not None else "prompts" if has_model else inputs
    if kind is None:
        if recipe.model == "-" and not problems:
            fix = "give --inputs image, text, tabular or prompts, or --model MODEL"
            problems.append(Problem("inputs", "nothing says how the data are read", fix))
        return {}
    if inputs is not None and inputs != kind:
        problems.append(Problem("inputs", f"is {inputs}, and the model is given {kind}", "leave it out"))
    sets = {}
    for role, source in (("data", recipe.forget), ("holdout", recipe.holdout)):
        if source is None:
            continue
        options: dict[str, Any] = {"columns": recipe.columns, "duplicates": recipe.duplicates, "role": role}
        if kind == "prompts":
            examples, found = try_read_examples(source, **options)
        else:
            examples, found = try_read_labelled(source, cast("Inputs", kind), **options)
        problems += found.all()
        if examples is not None:
            sets[role] = examples
    if len(sets) == 2:
        shared = set(sets["data"]["id"]) & set(sets["holdout"]["id"])
        if shared:
            what = f"share {len(shared)} example(s), so the model saw these"
            problems.append(Problem("data and holdout", what, "take them out of the holdout set"))
    return sets


def _folder_problems(folder: Path, inputs: Mapping[str, str | None]) -> list[Problem]:
    here = folder.resolve()
    for name, source in inputs.items():
        if source is not None and Path(source).exists():
            there = Path(source).resolve()
            if here == there or here in there.parents:
                return [Problem(f"--out {folder}", f"is the {name} or holds it", "give another folder")]
    if folder.exists() and not folder.is_dir():
        return [Problem(f"--out {folder}", "is a file", "give the name of a folder")]
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULT).is_file():
        return [Problem(f"--out {folder}", "is not empty and holds no forget set", "give another folder")]
    return []


def _stored(folder: Path, state: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return what is in the folder if it is of the same job; None where the folder is new or may be overwritten.

    Raises:
        BadInput: it is of another job.
    """
    if not (folder / RESULT).is_file():
        return None
    try:
        stored = RunFolder(folder).read_json(RESULT)
        changed = differences({k: stored.get(k) for k in state}, json.loads(json.dumps(state)))
    except BadInput:
        if overwrite:
            return None
        raise
    if not changed:
        return stored
    if overwrite:
        return None
    fix = "give another folder, or --overwrite to replace it"
    what = f"holds another forget set (differs in {', '.join(changed[:5])})"
    raise BadInput(Problem(f"--out {folder}", what, fix))


def _hold(files: RunFolder) -> Hold:
    """Keep the state of a search in a file; JSON writes a float so that the same one is read back."""

    def load() -> Mapping[str, Sequence[float]] | None:
        return files.read_json(SEARCH) if files.has(SEARCH) else None

    return Hold(load, lambda state: cast("None", files.write_json(SEARCH, state)))


def _write(
    files: RunFolder, state: Mapping[str, Any], result: ForgetSet, recipe: Recipe, label: str, task: Task | None
) -> dict[str, Any]:
    """Write the sets, then the recipe, then the result; the folder counts as finished only with the last."""
    sets = {**result.request.sets(), **({} if result.test is None else {"test": result.test})}
    for role in ("forget", "retain", "holdout", "test"):
        path = files / f"{role}.parquet"
        if role not in sets:
            path.unlink(missing_ok=True)
            continue
        examples = sets[role]
        # Ids are made of the content again when the file is read.
        away = [c for c in ("id", SOURCE_FILE, SOURCE_LINE) if c in examples.column_names]
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        with writing(files.path):
            try:
                examples.remove_columns(away).to_parquet(str(partial))
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    request = {
        "name": label, **{role: str(files / f"{role}.parquet") for role in sets if role != "test"},
        "scenario": result.request.scenario,
        **{k: v for k, v in recipe.model_dump(mode="json", exclude_defaults=True).items()
           if k in ("factory", "augment", "max_length", "template", "chat", "dtype", "device")},
    }  # fmt: skip
    if "test" in sets and task is not None and task.kind in CLASSIFIERS:
        request["audit_settings"] = {"accuracies": {"test": str(files / "test.parquet")}}
    files.write_text(REQUEST, to_yaml(request))
    found = {
        "status": "done", **state, "scenario": result.request.scenario, "unit": result.unit, "count": result.count,
        "examples": {role: len(examples) for role, examples in sets.items()},
        "fingerprint": result.request.fingerprint, "history": list(result.history), "cost": dict(result.cost),
        "facts": {"date": facts.now(), "versions": facts.versions(), "hardware": facts.hardware()},
        "scores": dict(result.scores),
    }  # fmt: skip
    files.write_json(RESULT, found)
    (files / SEARCH).unlink(missing_ok=True)
    return found


def _hashes(data: str, holdout: str | None, model: str | None) -> dict[str, str]:
    found = {name: facts.data_sha256(source) for name, source in (("data", data), ("holdout", holdout)) if source}
    return {**found, **({"model": facts.weights_sha256(model_path(model))} if model else {})}
