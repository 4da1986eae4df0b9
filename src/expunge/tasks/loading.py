"""Loading a model of whatever kind it is: each kind says which folders are its own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem
from expunge.registry import Registry, near_names
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import config_of
from expunge.tasks.storage import SETTINGS, stored_settings

TASKS: Registry[Task] = Registry("expunge.tasks", Task, "kind of model")  # type: ignore[type-abstract]
# The kind of a folder that nobody recognises, whose ``load`` then says what is wrong with it.
FALLBACK = "causal_lm"


def task_class(path: str | Path) -> type[Task]:
    """Return the class that loads a folder, or a name on the hub, without loading any weights.

    Args:
        path: folder or hub name; both ``config.json`` and what a run wrote beside the weights are read if there.

    Raises:
        BadInput: the folder's own settings cannot be read, or name a kind that there is not.
    """
    folder = Path(path)
    stored = stored_settings(folder)
    named = stored.get("task")
    if named is not None:
        if named not in TASKS.names():
            fix = f"{near_names(str(named), TASKS.names())}, or use a newer version of Expunge"
            raise BadInput(Problem(str(folder / SETTINGS), f"names the kind '{named}', which there is not", fix))
        return TASKS.get(named)
    config = read_json(folder / "config.json") if folder.exists() else _hub_config(str(path))
    for kind in TASKS.classes():
        if kind.recognises(path, config):
            return kind
    return TASKS.get(FALLBACK)


def load_task(path: str | Path, **loading: Any) -> Task:
    """Load a model of any kind, from safetensors only and without remote code.

    Args:
        path: a folder or the name of a model on the hub.
        loading: options of that kind's ``load``, such as ``dtype`` and ``device``. Options that are None are left to
            it; others that it does not know are errors.

    Raises:
        BadInput: the model cannot be loaded, or an option does not belong to its kind.
    """
    kind = task_class(path)
    return kind.load(path, **options_of(kind, path, loading))


def options_of(kind: type[Task], path: str | Path, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given, and refuse those that a kind of model does not know.

    Raises:
        BadInput: every option that does not belong to it.
    """
    given = {key: value for key, value in loading.items() if value is not None}
    known = [name for name in inspect.signature(kind.load).parameters if name != "path"]
    problems = [
        Problem(key, f"is no option of {path}, which is a {kind.id}", f"leave it out; known: {', '.join(known)}")
        for key in given
        if key not in known
    ]
    if problems:
        raise BadInput(problems)
    return given


def _hub_config(name: str) -> Mapping[str, Any]:
    """Return the configuration of a model on the hub; empty where it cannot be had."""
    try:
        return dict(config_of(name).to_dict())
    except Exception:  # the hub client fails in as many ways as networks do
        return {}


def read_json(file: Path) -> Mapping[str, Any]:
    """Return what a JSON file holds; empty where it is absent, cannot be read or holds something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
