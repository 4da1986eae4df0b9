"""What each method of a table is run with: common settings, and as many trials for every method.

Every method gets the same number of trials. One that trains with the loop is tried at learning rates of one ladder, the
same for all; one that does not is tried along the setting that decides how strongly it forgets. A method of which
nothing is known here is taken to train with the loop, so that a new one is tried like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.errors import BadInput, Problem
from expunge.methods.base import settle
from expunge.methods.run import METHODS
from expunge.registry import near_names
from expunge.training.settings import TrainSettings

# For the small models of the tables; of a method's own defaults only what is not a matter of scale is left.
COMMON: Mapping[str, Any] = {"epochs": 5, "batch_size": 64, "warmup": 0.0, "schedule": "constant"}
# Methods that count their passes themselves, whose steps each read all that is kept, or whose default is for models a
# hundred times as large.
OWN: Mapping[str, Mapping[str, Any]] = {
    "scrub": {"passes": 5}, "influence": {"iterations": 5}, "prune": {"sparsity": 0.8},
}  # fmt: skip
# The first rungs are tried first.
LEARNING_RATES = (1e-3, 1e-4, 3e-3, 3e-4, 1e-2, 3e-5)
# Methods that do not train with the loop, and the setting along which they are tried.
STRENGTHS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "ssd": ("alpha", (5.0, 2.0, 8.0, 3.0, 1.5, 1.2)),
    "fisher": ("alpha", (1e-6, 1e-5, 1e-7, 1e-4, 1e-8, 1e-3)),
    "influence": ("alpha", (1.0, 10.0, 3.0, 30.0, 0.3, 100.0)),
    "nearest_mean": ("metric", ("euclidean", "cosine")),
}


def serving(kind: str, scenario: str) -> tuple[list[str], dict[str, str]]:
    """Return the methods that serve a kind of model and of request, and why each other one does not.

    Args:
        kind: of the model, such as "image_classifier".
        scenario: of the request, such as "examples" or "class".

    Returns:
        Names, sorted; name -> reason for the others. Retraining is in neither: it is what all are compared with.
    """
    able, others = [], {}
    for method in METHODS.classes():
        if method.id == "retrain":
            continue
        if kind not in method.tasks:
            others[method.id] = f"serves {', '.join(method.tasks)}"
        elif method.scenarios and scenario not in method.scenarios:
            others[method.id] = f"serves requests of the scenario {' or '.join(method.scenarios)}"
        else:
            able.append(method.id)
    return able, others


def trials(method: str, count: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings that a method is tried with.

    Args:
        method: its name.
        count: trials; fewer are returned where there are no more to make.
        given: settings from the command line, nested, which win; those that the method does not know are left out.

    Raises:
        BadInput: no such method, or a value that is wrong for it.
    """
    chosen = METHODS.get(method)
    own, loop = set(chosen.Config.model_fields), set(TrainSettings.model_fields)
    mine = known_to(method, given)
    base = {**COMMON, **OWN.get(method, {}), **mine}
    key, values = STRENGTHS.get(method, ("learning_rate", LEARNING_RATES))
    rungs = [{key: mine[key]}] if key in mine else [{key: value} for value in values[:count]]
    found = [{**base, **rung} for rung in rungs]
    if "following" in own and "following" not in mine:
        # A method that hands over to another one trains that with the same settings.
        shared = {k: v for k, v in base.items() if k in loop}
        found = [{**one, "following": {**shared, **rung}} for one, rung in zip(found, rungs, strict=True)]
    for settings in found:
        settle(chosen, settings)
    return found


def known_to(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a method or its training knows."""
    known = {*METHODS.get(method).Config.model_fields, *TrainSettings.model_fields}
    return {key: value for key, value in given.items() if key in known}


def check_given(methods: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse settings that none of the methods knows.

    Raises:
        BadInput: all of them, or unknown methods.
    """
    loop = set(TrainSettings.model_fields)
    known = loop.union(*(METHODS.get(method).Config.model_fields for method in methods))
    problems = [
        Problem(f"--set {key}", "is a setting of none of the methods", near_names(key, sorted(known)))
        for key in given
        if key not in known
    ]
    if problems:
        raise BadInput(problems)
