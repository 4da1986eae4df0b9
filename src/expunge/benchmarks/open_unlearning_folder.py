"""Reading an output folder of open-unlearning: its results, its config, and where its checkpoint is.

Layout (locuslab/open-unlearning at d3d7cf9): ``saves/unlearn/TASK/`` holds the checkpoint, ``.hydra/config.yaml`` and
``checkpoint-N/evals/`` of evaluations while training; ``saves/unlearn/TASK/evals/`` or ``saves/eval/TASK/`` holds
``TOFU_EVAL.json`` (or ``MUSE_EVAL.json``), its ``_SUMMARY.json`` and a ``.hydra/`` of the evaluation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from expunge.benchmarks.open_unlearning_text import Template
from expunge.errors import BadInput, Problem
from expunge.tasks.storage import is_model

SUITES = ("TOFU", "MUSE")
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
NUMBERS = ("prob", "avg_loss", "score", "rouge1_recall", "rougeL_f1", "rougeL_recall")
TEXTS = ("generation", "ground_truth")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Logs:
    """What one ``*_EVAL.json`` holds.

    Attributes:
        file: where it was read.
        suite: "TOFU" or "MUSE".
        metrics: metric -> ``{"agg_value": ..., "value_by_index": {...}}``.
        summary: metric -> number, of the ``_SUMMARY.json`` beside it; empty without one.
    """

    file: Path
    suite: str
    metrics: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class PeerRun:
    """A run folder.

    Attributes:
        folder: as given.
        logs: its results; None where it was not evaluated.
        checkpoint: folder of its weights, where they can be found.
        named_checkpoint: what the config says that they are.
        template: how questions are put; None without a config.
        split: "forget10" or so (TOFU), "News" or "Books" (MUSE); None without a config.
        retained_logs: results of the retained model that the config names, where the file is there.
        named_retained: what the config says that it is.
        suite: "TOFU" or "MUSE", by its results or its config; None where neither says.
    """

    folder: Path
    logs: Logs | None
    checkpoint: Path | None
    named_checkpoint: str | None = None
    template: Template | None = None
    split: str | None = None
    retained_logs: Logs | None = None
    named_retained: str | None = None
    suite: str | None = None


def read_run(folder: str | Path) -> PeerRun:
    """Read a run folder.

    Raises:
        BadInput: no such folder, nothing of open-unlearning in it, damaged files, missing keys, or a checkpoint that is
            a pickle. Everything that is wrong is in one error.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise BadInput(Problem(str(folder), what, "give a run folder (saves/unlearn/TASK, saves/eval/TASK) or a model"))
    problems: list[Problem] = []
    logs = _find_logs(folder, problems)
    config, file = _find_config(folder, problems)
    if logs is None and not config and not is_model(folder) and not problems:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        fix = "give the folder that holds TOFU_EVAL.json or MUSE_EVAL.json, .hydra/ or a checkpoint"
        raise BadInput(Problem(str(folder), f"is no run folder of open-unlearning: it holds {there}", fix))
    template = split = named = named_retained = None
    retained_logs = None
    suite = logs.suite if logs else None
    if config:
        model = config.get("model")
        args = model.get("template_args") if isinstance(model, Mapping) else None
        if args is None:
            problems.append(Problem(str(file), "has no key model.template_args", "copy the run's .hydra folder again"))
        else:
            try:
                template = Template.of(args, str(file))
            except BadInput as error:
                problems += error.problems
        named = _text(_get(config, "model.model_args.pretrained_model_name_or_path"))
        suite = suite or next((s for s in SUITES if _get(config, f"eval.{s.lower()}")), None)
        key, part = "data_split" if suite == "MUSE" else "forget_split", f"eval.{(suite or 'TOFU').lower()}"
        split = _text(_get(config, f"{part}.{key}") or _get(config, key))
        named_retained = _text(_get(config, f"{part}.retain_logs_path") or _get(config, "retain_logs_path"))
        if named_retained and (found := _beside(folder, named_retained)) is not None:
            retained_logs = read_logs(found, problems)
    checkpoint = _checkpoint(folder, named, config, problems)
    if problems:
        raise BadInput(problems)
    return PeerRun(folder, logs, checkpoint, named, template, split, retained_logs, named_retained, suite)


def read_logs(file: Path, problems: list[Problem]) -> Logs | None:
    """Read one ``*_EVAL.json`` with the summary beside it; what is wrong is added to ``problems``."""
    suite = file.name.split("_")[0]
    content = _json(file, problems)
    if content is None:
        return None
    fix = "evaluate again, or copy the file again"
    if suite not in SUITES:
        problems.append(Problem(str(file), f"is not one of {', '.join(f'{s}_EVAL.json' for s in SUITES)}", fix))
        return None
    if not content:
        problems.append(Problem(str(file), "holds no metric", fix))
    for name, value in content.items():
        if not isinstance(value, dict) or "agg_value" not in value:
            has = ", ".join(sorted(value)[:5]) if isinstance(value, dict) else type(value).__name__
            problems.append(Problem(f"{file}: {name}", f"has no 'agg_value', only {has or 'nothing'}", fix))
        else:
            sides = [(f" of '{side}'", value[side]) for side in ("forget", "holdout") if side in value]
            for where, part in (("", value), *sides):
                if (what := _wrong_entries(part)) is not None:
                    problems.append(Problem(f"{file}: {name}", f"{what}{where}", fix))
    summary_file = file.with_name(f"{suite}_SUMMARY.json")
    summary = (_json(summary_file, problems) or {}) if summary_file.is_file() else {}
    return Logs(file, suite, content, summary)


def _wrong_entries(part: Any) -> str | None:
    """Say what is wrong with the per-example values of a metric, or of one side of it; None where nothing is."""
    if not isinstance(part, dict):
        return f"has a {type(part).__name__}, not an object, as values"
    if not isinstance(part.get("agg_value"), int | float | None):
        return f"has {part['agg_value']!r:.40} as 'agg_value'"
    entries = part.get("value_by_index")
    if entries is None:
        return None
    if not isinstance(entries, dict):
        return f"has a {type(entries).__name__} as 'value_by_index', not an object"
    for index, entry in entries.items():
        if entry is not None and not isinstance(entry, dict):
            return f"has a {type(entry).__name__}, not an object, as row {index}"
        for key, value in (entry or {}).items():
            kind = str if key in TEXTS else (int, float) if key in NUMBERS else object
            if any(v is not None and not isinstance(v, kind) for v in (value if isinstance(value, list) else [value])):
                return f"has {value!r:.40} as {key} in row {index}"
    return None


def read_template(file: str | Path) -> Template:
    """Read the template of a model config of open-unlearning (``configs/model/NAME.yaml``).

    Raises:
        BadInput: the file cannot be read or has no ``template_args``.
    """
    problems: list[Problem] = []
    content = _yaml(Path(file), problems)
    if problems:
        raise BadInput(problems)
    if "template_args" not in content:
        fix = "give a file like configs/model/Llama-3.2-1B-Instruct.yaml"
        raise BadInput(Problem(str(file), "has no key 'template_args'", fix))
    return Template.of(content["template_args"], str(file))


def refuse_pickles(folder: Path, problems: list[Problem]) -> None:
    """Note a checkpoint whose weights are pickles: reading them would run what is in them."""
    if not any(folder.glob("*.safetensors")) and (found := [n for n in PICKLES if (folder / n).is_file()]):
        fix = "where you trust it, load it with transformers and save_pretrained it: that writes safetensors"
        problems.append(Problem(str(folder / found[0]), "is a pickle, which can run code when it is read", fix))


def _find_logs(folder: Path, problems: list[Problem]) -> Logs | None:
    """Results of the folder itself, else of ``evals/``, else of the latest evaluation while training."""
    steps = sorted(folder.glob("checkpoint-*/evals"), key=_step, reverse=True)
    for place in (folder, folder / "evals", *steps):
        files = [place / f"{suite}_EVAL.json" for suite in SUITES if (place / f"{suite}_EVAL.json").is_file()]
        if len(files) > 1:
            problems.append(Problem(str(place), "holds results of both TOFU and MUSE", "keep them in two folders"))
        if files:
            return read_logs(files[0], problems)
    return None


def _step(place: Path) -> int:
    number = place.parent.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def _find_config(folder: Path, problems: list[Problem]) -> tuple[dict[str, Any], Path | None]:
    """The config of the evaluation where there is one, for it names template, split and retained model."""
    for place in (folder / "evals", folder, folder.parent):
        file = place / ".hydra" / "config.yaml"
        if file.is_file():
            return _yaml(file, problems), file
    return {}, None


def _checkpoint(folder: Path, named: str | None, config: Mapping[str, Any], problems: list[Problem]) -> Path | None:
    # What an unlearning run names is what it started from; what it made is in its folder.
    started_from = _get(config, "mode") in ("unlearn", "train")
    places = [folder, folder.parent] if folder.name == "evals" else [folder]
    places += sorted(folder.glob("checkpoint-*"), key=lambda p: _step(p / "evals"), reverse=True)
    found = next((place for place in places if is_model(place)), None)
    if found is None and named and not started_from:
        found = _beside(folder, named)
    if found is not None and found.is_dir() and is_model(found):
        refuse_pickles(found, problems)
        return found
    return None


def _beside(folder: Path, named: str) -> Path | None:
    """Find a path that a config gives relative to the clone that the run was started in."""
    given = Path(named).expanduser()
    roots = [Path(), *folder.resolve().parents]
    candidates = [given] if given.is_absolute() else [root / given for root in roots]
    return next((path for path in candidates if path.exists()), None)


def _get(config: Mapping[str, Any], path: str, depth: int = 8) -> Any:
    """Look up a dotted key and follow ``${...}`` where it is written so; None where that leads nowhere."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    if isinstance(value, str) and "${" in value:
        parts = {name: _get(config, name, depth - 1) if depth else None for name in REFERENCE.findall(value)}
        if any(part is None for part in parts.values()) or "${hydra:" in value:
            return None
        return REFERENCE.sub(lambda match: str(parts[match[1]]), value)
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value and value != "???" else None


def _json(file: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem(str(file), f"cannot be read: {error}", "the file seems to be cut off; copy it again"))
        return None
    if not isinstance(value, dict):
        problems.append(Problem(str(file), f"holds a {type(value).__name__}, not an object", "copy the file again"))
        return None
    return value


def _yaml(file: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        problems.append(Problem(str(file), f"cannot be read: {first}", "copy the file again"))
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(str(file), "holds no config", "copy the file again"))
        return {}
    return value
