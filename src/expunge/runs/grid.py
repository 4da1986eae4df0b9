"""The cells of a sweep: methods times settings times seeds, each a recipe that was found to work before any runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.errors import BadInput, Problem
from expunge.methods.base import Method, ObjectiveMethod, nested
from expunge.methods.run import METHODS, unknown_methods
from expunge.registry import near_names
from expunge.runs.check import Ground, check
from expunge.runs.progress import Progress
from expunge.runs.recipe import SECTIONS, Recipe, try_read_recipe, yaml_list
from expunge.training.settings import TrainSettings

Level = Literal["oracle", "holdout"] | float
Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        method, seed: of the run.
        settings: the settings in which cells of its method differ.
        recipe: everything, every setting resolved.
        key: hash of the recipe and of the content of model and data; equal cells have equal keys.
    """

    method: str
    seed: int
    settings: Mapping[str, Any]
    recipe: Recipe
    key: str

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.method}-{self.seed}-{self.key}"


def plan_sweep(
    file: str | Path | None,
    given: Mapping[str, Any],
    overrides: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    level: Level | None = None,
    progress: Progress | None = None,
) -> list[Cell]:
    """Lay out a sweep and check every cell of it.

    Args:
        file, given: as in ``read_recipe``; "settings" hold for every method that knows them.
        overrides: ``key=value`` or, for settings of methods and of training, ``key=value,value``. ``METHOD.key=...`` is
            for that method alone and wins.
        methods: ids; the recipe's method where empty.
        seeds: at least one.
        level: where gradient methods are to stop and which checkpoint they keep; None leaves that to the settings.
            Exact methods are left alone, since they never held the data.
        progress: hears warnings.

    Returns:
        The cells, in the order of methods, settings and seeds; cells that would be the same run are one.

    Raises:
        BadInput: everything that is wrong with any cell, all methods that cannot run on this request among it.
    """
    problems: list[Problem] = []
    plain, grid = _split(overrides, problems)
    base, wrong = try_read_recipe(file, given, plain)
    problems += wrong
    if base is None:
        raise BadInput(problems)
    chosen = list(dict.fromkeys(methods)) or [base.method]
    known = [name for name in chosen if name in METHODS.names()]
    problems += unknown_methods(chosen)
    if not seeds:
        problems.append(Problem("--seeds", "are missing", "give at least one"))
    settings = {**{key: [value] for key, value in _flat(base.settings, set(METHODS.names())).items()}, **grid}
    problems += _unowned(settings, known, chosen)
    ground = Ground()
    cells: list[Cell] = []
    for name in known:
        mine = _mine(settings, METHODS.get(name))
        varied = [key for key, values in mine.items() if len(values) > 1]
        for values in itertools.product(*mine.values()):
            combination = dict(zip(mine, values, strict=True))
            asked = aimed(METHODS.get(name), nested(combination), level)
            for seed in dict.fromkeys(seeds or (0,)):
                recipe = base.model_copy(update={"method": name, "seed": seed, "settings": asked})
                try:
                    checked = check(recipe, None, "unlearn", progress if not cells else None, ground)
                except BadInput as error:
                    problems += error.problems or [Problem(f"method {name}", str(error), "change the settings")]
                    break
                cells.append(
                    Cell(
                        name,
                        seed,
                        {key: combination[key] for key in varied},
                        checked.recipe,
                        _key(checked.recipe, checked.hashes),
                    )
                )
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))
    return list({cell.key: cell for cell in cells}.values())


def aimed(method: type[Method], settings: dict[str, Any], level: Level | None) -> dict[str, Any]:
    """Return settings with the rule to stop at a level, where the method trains towards one and none is given."""
    if level is None or not issubclass(method, ObjectiveMethod) or method.removal_level == "exact":
        return settings
    return {**settings, "stop": {"forget_target": level, "keep": "closest", **settings.get("stop", {})}}


def _split(overrides: Sequence[str], problems: list[Problem]) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the overrides that are not settings of methods, and the values of those that are."""
    plain: list[str] = []
    grid: dict[str, list[Any]] = {}
    for text in overrides:
        key, equals, raw = text.partition("=")
        key = key.strip().removeprefix("settings.")
        values = yaml_list(raw) if equals and key else None
        if key.partition(".")[0] in SECTIONS or not values:
            if values and len(values) > 1:
                what = "has several values; only settings of methods and of training can"
                problems.append(Problem(f"--set {text}", what, "give one, as [a, b] if it is a list"))
            else:
                plain.append(text)
        else:
            grid[key] = values
    return plain, grid


def _flat(settings: Mapping[str, Any], heads: set[str], prefix: str = "") -> dict[str, Any]:
    """Write nested settings with dotted keys, as far as one key can be for one method only."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inside = isinstance(value, Mapping) and (key in heads or key == "stop")
        found |= _flat(value, set(), f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return found


def _unowned(settings: Mapping[str, Any], methods: Sequence[str], asked: Sequence[str]) -> list[Problem]:
    """Find settings that no method of the sweep has."""
    loop = set(TrainSettings.model_fields)
    own = {name: loop | set(METHODS.get(name).Config.model_fields) for name in methods}
    everything = sorted(set().union(*own.values()))
    problems = []
    for key in settings:
        head, _, rest = key.partition(".")
        where = f"--set {key}"
        if head == "seed":
            problems.append(Problem(where, "is what --seeds varies", "use --seeds 0,1,2"))
        elif head in METHODS.names() and rest:
            if head not in asked:
                problems.append(Problem(where, f"is for {head}, which is not swept", f"add {head} to --methods"))
            elif rest.partition(".")[0] not in own[head]:
                problems.append(Problem(where, f"is no setting of {head}", near_names(rest, sorted(own[head]))))
        elif methods and head not in everything:
            problems.append(Problem(where, "is a setting of none of the methods", near_names(head, everything)))
    return problems


def _mine(settings: Mapping[str, Sequence[Any]], method: type[Method]) -> dict[str, Sequence[Any]]:
    """Return the settings that a method knows; those that name it win."""
    known = set(TrainSettings.model_fields) | set(method.Config.model_fields)
    shared = {key: values for key, values in settings.items() if key.partition(".")[0] in known}
    prefix = f"{method.id}."
    own = {key.removeprefix(prefix): values for key, values in settings.items() if key.startswith(prefix)}
    return {**shared, **own}


def _key(recipe: Recipe, hashes: Mapping[str, str]) -> str:
    value = json.dumps([recipe.to_dict("unlearn"), dict(hashes)], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(value.encode(), digest_size=6).hexdigest()
