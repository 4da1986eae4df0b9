"""What can be found wrong with a job before anything is computed, all of it at once."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.audits.base import Audit
from expunge.audits.suite import select_audits
from expunge.data.columns import NO_COLUMN
from expunge.data.request_files import read_request
from expunge.errors import BadInput, Problem, collected, tried
from expunge.methods.base import Method, ObjectiveMethod, settle
from expunge.methods.run import METHODS
from expunge.registry import near_names
from expunge.requests.labelled import labelled_preflight
from expunge.requests.preflight import preflight
from expunge.requests.request import DeletionRequest
from expunge.runs import facts, summary
from expunge.runs.folder import RunFolder
from expunge.runs.models import model_path, stored
from expunge.runs.progress import Progress
from expunge.runs.recipe import Command, Recipe
from expunge.tasks.causal_lm import CausalLM, check_vocabulary, config_of
from expunge.tasks.encoding import TextEncoder
from expunge.tasks.factories import check_factory
from expunge.tasks.loading import options_of, task_class
from expunge.tasks.predictor import Predictor
from expunge.tasks.reading import Reading, reading_of
from expunge.tasks.storage import first_line, is_model
from expunge.tasks.weights import check_weights
from expunge.training.settings import TrainSettings, wrong_settings
from expunge.verdict import VerdictSettings

T = TypeVar("T")
# How often a run looks at a small subset and saves its state, unless the recipe says so itself.
LOOKS, LOOKED_AT, CHECKPOINTS_PER_RUN = 5, 32, 10
# A run that is to end at a level must look more often, or it ends well beyond it.
LOOKS_FOR_A_LEVEL = 20


@dataclass(frozen=True)
class Checked:
    """A recipe that was found to work, every setting resolved, with the request that it names."""

    recipe: Recipe
    request: DeletionRequest
    verdict: VerdictSettings
    method: Method | None
    hashes: Mapping[str, str]


class Ground:
    """What jobs on the same model and data have in common when they are checked: read once, however many jobs."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def once(self, *key: object, call: Callable[[], T]) -> T:
        """Return what a call gave, or raise what it raised, when it was first made for a key."""
        name = repr(key)
        if name not in self._found:
            try:
                self._found[name] = call()
            except BadInput as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, BadInput):
            raise found
        return cast("T", found)


def check(
    recipe: Recipe,
    out: RunFolder | None,
    command: Command = "unlearn",
    progress: Progress | None = None,
    ground: Ground | None = None,
) -> Checked:
    """Find everything that is wrong with a job before anything is computed.

    Args:
        recipe: what is asked.
        out: where the run will write, or None for nowhere.
        command: "unlearn" or "audit".
        progress: hears the warnings.
        ground: shared with the checks of other jobs on the same model and data.

    Returns:
        The job with every setting resolved.

    Raises:
        BadInput: every problem of settings, request, models and folder in one error.
    """
    problems: list[Problem] = []
    ground = ground or Ground()
    named = {name: getattr(recipe, name) for name in _GROUND}
    method = train = None
    if command == "unlearn":
        chosen = tried(problems, "method", lambda: METHODS.get(recipe.method))
        if chosen is not None:
            settled = tried(problems, "settings", lambda: settle(chosen, {"seed": recipe.seed, **recipe.settings}))
            method, train = settled or (None, None)
    model = tried(problems, "model", lambda: ground.once("model", named, call=lambda: described(recipe)))
    kind = model.kind if isinstance(model, Reading) else CausalLM.kind
    sound: set[str] = set()
    for place in dict.fromkeys(str(model_path(p)) for p in (recipe.model, recipe.original, *recipe.oracle) if p):
        if is_model(Path(place)):
            with collected(problems, "model"):
                ground.once("weights", place, call=partial(check_weights, place))
                sound.add(place)
    audits = tried(problems, "audits", lambda: select_audits(recipe.audits, recipe.audit_settings, kind)) or []
    verdict = _verdict(recipe.verdict, problems)
    tried(problems, "device", lambda: device_of(recipe.device))
    request = tried(
        problems,
        "request",
        lambda: ground.once("request", named, call=lambda: _request(recipe, model)),
    )
    if out is not None:
        inputs = {"model": recipe.model, "original": recipe.original, "forget set": recipe.forget}
        inputs |= {"retain set": recipe.retain, "holdout set": recipe.holdout}
        problems += _room(recipe, out) if command == "unlearn" else []
        problems += out.problems({**inputs, **{f"oracle {k}": path for k, path in enumerate(recipe.oracle, 1)}})
    for name, path in (("original", recipe.original), *(("oracle", path) for path in recipe.oracle)):
        if path is not None:
            before = len(problems)
            tried(problems, name, lambda path=path: _comparable(path, model, recipe))  # type: ignore[misc]
            if len(problems) > before:
                sound.discard(str(model_path(path)))
    if model is None:
        sound.discard(str(model_path(recipe.model)))
    for place in sorted(sound):
        tried(problems, "model", partial(ground.once, "fit", place, call=partial(task_class(place).check_fit, place)))
    if request is not None:
        found = ground.once("preflight", named, call=lambda: _preflight(request, model))
        problems += [p for p in found if p.severity == "error"]
        asked = _unanswered(audits, recipe, request, command) if recipe.audits is not None else []
        for problem in [*found, *asked]:
            if problem.severity == "warning" and progress is not None:
                progress.warn(problem)
        if method is not None and model is not None:
            served = ground.once("served", named, call=lambda: _outline(recipe, model))
            tried(problems, "method", lambda: method.check(served, request))
    if train is not None:
        problems += _blind(recipe, train)
        if train.stop.forget_target == "oracle" and not recipe.oracle:
            problems.append(Problem("stop.forget_target", "is oracle and no oracle is there", "give --oracle MODEL"))
        if train.stop.forget_target == "holdout" and recipe.holdout is None:
            fix = "give --holdout FILE"
            problems.append(Problem("stop.forget_target", "is holdout and there is no holdout set", fix))
    if problems or request is None or verdict is None:
        raise BadInput(list(dict.fromkeys(problems)))
    resolved = recipe.model_copy(
        update={
            "settings": _resolved_settings(recipe, request, method, train),
            "audits": tuple(a.id for a in audits),
            "audit_settings": {a.id: found for a in audits if (found := a.config.model_dump(mode="json"))},
            "audit_limits": summary.audit_limits(request, recipe.audit_limits),
            "verdict": verdict.model_dump(mode="json"),
        }
    )
    hashes = ground.once("hashes", named, call=lambda: _hashes(recipe, request))
    if same := _same_weights(recipe, hashes, command):
        raise BadInput(same)
    return Checked(resolved, request, verdict, method, hashes)


# The parts of a recipe that say what a job starts from.
_GROUND = (
    "model", "original", "oracle", "forget", "retain", "holdout", "scenario", "name", "columns", "splits", "duplicates",
    "template", "chat", "max_length", "factory", "augment",
)  # fmt: skip


def _request(recipe: Recipe, model: TextEncoder | Reading | None) -> DeletionRequest | None:
    """Read the sets as the model needs them; None where only the model could tell whether they are right."""
    read = model if model is not None else _reading(recipe.model)
    try:
        return read_request(
            recipe.forget,
            recipe.retain,
            recipe.holdout,
            scenario=recipe.scenario,
            name=recipe.name,
            columns=recipe.columns,
            split=recipe.splits,
            duplicates=recipe.duplicates,
            inputs=cast("Any", read.inputs.name) if isinstance(read, Reading) else None,
        )
    except BadInput as error:
        if model is not None or isinstance(read, Reading):
            raise
        # Which columns there must be depends on the kind of model.
        sure = [problem for problem in error.problems if NO_COLUMN not in problem.what]
        if sure:
            raise BadInput(sure) from None
        return None


def _reading(path: str) -> Reading | None:
    """Return how examples are read for a model with which something else is wrong, if that can be known."""
    try:
        place = _place(path)
        return reading_of(place) if task_class(place) is Predictor else None
    except BadInput:
        return None


def _preflight(request: DeletionRequest, model: TextEncoder | Reading | None) -> list[Problem]:
    if isinstance(model, Reading):
        return labelled_preflight(request, model)
    return preflight(request, model, max_length=model.max_length if model else None)


def _verdict(values: Mapping[str, Any], problems: list[Problem]) -> VerdictSettings | None:
    try:
        return VerdictSettings(**values)
    except ValidationError as error:
        problems += wrong_settings(VerdictSettings, error, "verdict.")
        return None


def device_of(asked: str) -> str:
    """Return the device to use; "auto" is this process's GPU if there is one."""
    if asked == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise BadInput(Problem("device", f"'{asked}' is not a device", "use auto, cpu, cuda or cuda:1")) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(Problem("device", f"'{asked}' was asked for and there is no CUDA device", "use --device cpu"))
    return asked


def loading_of(recipe: Recipe) -> dict[str, Any]:
    """Return the options of ``load_task`` that a recipe names."""
    return {
        "dtype": recipe.dtype,
        "device": device_of(recipe.device),
        "template": recipe.template,
        "chat": recipe.chat,
        "max_length": recipe.max_length,
        "factory": recipe.factory,
        "augment": recipe.augment,
    }


def described(recipe: Recipe) -> TextEncoder | Reading:
    """Return how examples are read for the model, without loading its weights.

    Raises:
        BadInput: there is no model, or the recipe has options that its kind does not know.
    """
    place = _place(recipe.model)
    kind = task_class(place)
    loading = options_of(kind, recipe.model, {**loading_of(recipe), "device": None})
    if kind is Predictor:
        check_factory(place, recipe.factory)
        return reading_of(place, max_length=loading.get("max_length"), augment=loading.get("augment"))
    return _encoder(recipe)


def _outline(recipe: Recipe, model: TextEncoder | Reading) -> Any:
    """Return the model as far as methods may ask about it before work starts, without weights.

    A language model has its structure; a classifier or regressor what goes in and what comes out.
    """
    if isinstance(model, Reading):
        return model
    with torch.device("meta"):
        structure = AutoModelForCausalLM.from_config(_config(recipe.model), trust_remote_code=False)
    return CausalLM(
        structure, model.tokenizer, template=model.template, chat=model.chat, max_length=model.max_length,
        source=recipe.model,
    )  # fmt: skip


def _comparable(path: str, model: TextEncoder | Reading | None, recipe: Recipe) -> None:
    """Refuse a model that there is not, or whose predictions cannot be compared with those of the one judged."""
    fix = "give a model that was made for the same data"
    place = _place(path)
    predictor = task_class(place) is Predictor
    if not isinstance(model, Reading):
        if not predictor:
            _config(path)
        elif model is not None:
            raise BadInput(Problem(f"model {path}", "is no language model", fix))
        if model is not None and _tokenizer(place).get_vocab() != model.tokenizer.get_vocab():
            what = "has another tokenizer than the model given, so that losses per token cannot be compared"
            raise BadInput(Problem(f"model {path}", what, "give a model with the same tokenizer"))
        if model is not None:
            check_vocabulary(model.tokenizer, _config(path).get_text_config().vocab_size, f"model {path}")
        return
    if not predictor:
        raise BadInput(Problem(f"model {path}", f"is no {model.kind}", fix))
    check_factory(place, recipe.factory)
    other = reading_of(place)
    if other.inputs.name != model.inputs.name:
        what = f"is given {other.inputs.name} inputs ({other.kind}), and the model given {model.inputs.name} ones"
        raise BadInput(Problem(f"model {path}", what, fix))
    if other.outcome != model.outcome:
        what = "predicts other classes, or numbers on another scale, than the model given"
        raise BadInput(Problem(f"model {path}", what, fix))


def _place(path: str) -> str | Path:
    """Return where a model is, or say that nothing is there."""
    place = model_path(path)
    if not Path(place).exists() and _is_local(path):
        near = near_names(Path(path).name, _neighbours(Path(path)))
        fix = near if near.startswith("did you mean") else f"give {_MODEL}"
        raise BadInput(Problem(f"model {path}", "is not there", fix))
    return place


def _config(path: str) -> Any:
    """Read a model's configuration, or say what is wrong with the path."""
    place = _place(path)
    try:
        return config_of(place)
    except Exception as error:
        if (file := Path(place) / "config.json").is_file():
            fix = "correct it, or give a model that this version of transformers knows"
            raise BadInput(Problem(str(file), f"cannot be read: {first_line(error)}", fix)) from error
        here = Path(place).exists()
        what = "holds no model" if here else "is not a folder, and cannot be had from the hub now"
        fix = f"give the folder, {Path(place).parent}" if is_model(Path(place).parent) else f"give {_MODEL}"
        raise BadInput(Problem(f"model {path}", what, fix)) from error


_MODEL = "a folder with config.json, *.safetensors and tokenizer files, a run folder, or owner/name on the hub"


def _is_local(path: str) -> bool:
    """Say whether a path that does not exist was meant as one: only owner/name can be a name on the hub."""
    owner, slash, name = path.partition("/")
    return not slash or not name or "/" in name or owner in (".", "..", "~", "") or Path(owner).exists()


def _neighbours(path: Path) -> list[str]:
    try:
        return [p.name for p in path.parent.iterdir() if p.is_dir()]
    except OSError:
        return []


def _encoder(recipe: Recipe) -> TextEncoder:
    """Make the encoder that the model will use, without loading its weights."""
    path = model_path(recipe.model)
    config = _config(recipe.model)
    tokenizer = _tokenizer(path)
    check_vocabulary(tokenizer, config.get_text_config().vocab_size, f"model {recipe.model}")
    before = stored(path)
    return TextEncoder(
        tokenizer,
        template=recipe.template or before.get("template", "{prompt} {answer}"),
        chat=recipe.chat or before.get("chat", "auto"),
        max_length=recipe.max_length or getattr(config.get_text_config(), "max_position_embeddings", None),
    )


def _tokenizer(path: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        fix = "put tokenizer.json and tokenizer_config.json beside the weights"
        raise BadInput(Problem(f"model {path}", "has no tokenizer that can be loaded", fix)) from error


def _resolved_settings(
    recipe: Recipe, request: DeletionRequest, method: Method | None, train: TrainSettings | None
) -> dict[str, Any]:
    """Return every setting of method and training; looks and checkpoints are spread over the run if nobody asked."""
    if method is None or train is None:
        return {}
    if isinstance(method, ObjectiveMethod):
        examples = len(getattr(request, method.objective().anchor))
        total = min(train.epochs * math.ceil(examples / train.batch_size), train.max_steps or 10**12)
        given = _dotted(recipe.settings)
        update: dict[str, Any] = {}
        if "stop.every" not in given:
            size = train.stop.probe_size if any(key.startswith("stop.") for key in given) else LOOKED_AT
            count = LOOKS if train.stop.forget_target == "none" else LOOKS_FOR_A_LEVEL
            looks = {"every": math.ceil(total / count), "probe_size": size}
            update["stop"] = train.stop.model_copy(update=looks)
        if "checkpoint_every" not in given:
            update["checkpoint_every"] = math.ceil(total / CHECKPOINTS_PER_RUN)
        train = train.model_copy(update=update)
    return {**method.config.model_dump(mode="json"), **train.model_dump(mode="json")}


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of settings, however they were nested."""
    found: set[str] = set()
    for key, value in settings.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}"}
    return found


def _blind(recipe: Recipe, train: TrainSettings) -> list[Problem]:
    """Find rules for stopping that nobody would ever look at."""
    stop = train.stop
    if stop.every or "stop.every" not in _dotted(recipe.settings):
        return []
    rules = {"forget_target": stop.forget_target != "none", "retain_ceiling": stop.retain_ceiling is not None,
             "keep": stop.keep != "last"}  # fmt: skip
    fix = "give stop.every a number of steps, or take the rule out"
    return [Problem(f"stop.{name}", "has no effect, because stop.every is 0", fix) for name, on in rules.items() if on]


def _room(recipe: Recipe, out: RunFolder) -> list[Problem]:
    """Find a disk that cannot hold the new model, which takes as much as the old one; half where it is halved."""
    place = Path(model_path(recipe.model))
    if not place.is_dir() or out.model.exists():
        return []
    size = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
    size = size if recipe.dtype == "float32" else size // 2
    parent = next(p for p in (out.path.resolve(), *out.path.resolve().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free >= size:
        return []
    what = f"has {free / 1e6:.0f} MB free, and the new model takes {size / 1e6:.0f} MB or more"
    return [Problem(f"--out {out.path}", what, "free some space, or give a folder on another disk")]


def _same_weights(recipe: Recipe, hashes: Mapping[str, str], command: Command) -> list[Problem]:
    """Find oracles that cannot be ones: the model that knows the forget set, or one oracle given twice."""
    knows = "original" if command == "audit" else "model"
    seen = {}
    if hashes.get(knows):
        seen[hashes[knows]] = f"the model {getattr(recipe, knows)}, which knows the forget set"
    problems = []
    for number, path in enumerate(recipe.oracle, 1):
        digest = hashes[f"oracle-{number}"]
        if digest in seen:
            what = f"has the same weights as {seen[digest]}"
            problems.append(Problem(f"oracle {path}", what, "give a model that was trained without it, each once"))
        elif digest:
            seen[digest] = f"the oracle {path}"
    return problems


def _unanswered(audits: Sequence[Audit], recipe: Recipe, request: DeletionRequest, command: Command) -> list[Problem]:
    """Warn of audits that were asked for by name and cannot say anything, because what they compare with is lacking."""
    there = {*request.sets(), *(("oracle",) if recipe.oracle else ())}
    there |= {"original"} if command == "unlearn" or recipe.original else set()
    fixes = {"oracle": "--oracle MODEL", "original": "--original MODEL", "retain": "--retain FILE",
             "holdout": "--holdout FILE"}  # fmt: skip
    return [
        Problem(f"audit {audit.id}", f"needs {need}, which is not given: it will say 'no data'",
                f"give {fixes[need]}, or leave the audit out", "warning")
        for audit in audits
        for need in audit.needs
        if need in fixes and need not in there
    ]  # fmt: skip


def _hashes(recipe: Recipe, request: DeletionRequest) -> dict[str, str]:
    models = {"model": recipe.model, "original": recipe.original}
    models |= {f"oracle-{k}": path for k, path in enumerate(recipe.oracle, 1)}
    data = {"forget": recipe.forget, "retain": recipe.retain, "holdout": recipe.holdout}
    found = {name: facts.weights_sha256(model_path(path)) for name, path in models.items() if path}
    found |= {name: facts.data_sha256(path) for name, path in data.items() if path}
    return {**found, "request": request.fingerprint}
