"""The settings that a benchmark gives to each of its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.errors import Problem, collected
from expunge.methods.base import settle
from expunge.methods.run import METHODS
from expunge.registry import near_names
from expunge.training.settings import TrainSettings


def method_settings(
    methods: Sequence[str],
    given: Mapping[str, Any],
    base: Mapping[str, Any],
    own_base: Mapping[str, Mapping[str, Any]],
    every: int,
    problems: list[Problem],
) -> dict[str, dict[str, Any]]:
    """Give every method the settings that it knows, and check them before any work.

    Args:
        methods: names.
        given: settings from the command line, which win.
        base: settings for all methods; empty for a model of the user's own.
        own_base: settings for single methods, used only with ``base``.
        every: steps between two looks at the forget set, unless given.
        problems: takes one for each method that is unknown, setting that no method knows, and value that is wrong.

    Returns:
        Settings by method, of those without a problem.
    """
    loop = set(TrainSettings.model_fields)
    own: dict[str, set[str]] = {}
    for method in methods:
        with collected(problems):
            own[method] = set(METHODS.get(method).Config.model_fields)
    known = loop.union(*own.values())
    problems += [
        Problem(f"--set {key}", "is a setting of none of the methods", near_names(key, sorted(known)))
        for key in given
        if key not in known
    ]
    settings: dict[str, dict[str, Any]] = {}
    for method in own:
        mine = {key: value for key, value in given.items() if key in loop | own[method]}
        stop = {"every": every, "forget_target": "oracle", "keep": "closest", **mine.pop("stop", {})}
        chosen = {**base, **(own_base.get(method, {}) if base else {}), **mine, "stop": stop}
        with collected(problems):
            settle(METHODS.get(method), chosen)
            settings[method] = chosen
    return settings
