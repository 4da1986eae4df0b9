"""Forget: one call from a model and a request to a new model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem
from expunge.methods.base import Method, ObjectiveMethod, Run, Unlearned, settle
from expunge.registry import Registry, near_names
from expunge.requests.request import DeletionRequest, check_given
from expunge.tasks.base import Task
from expunge.tasks.loading import load_task
from expunge.tasks.weights import check_values
from expunge.training.loop import Progress

METHODS: Registry[Method] = Registry("expunge.methods", Method, "method")  # type: ignore[type-abstract]


def unknown_methods(methods: Iterable[str]) -> list[Problem]:
    """Find methods, asked for as ``--methods``, that there are not."""
    known = METHODS.names()
    return [
        Problem("--methods", f"'{name}' is not a method", near_names(name, known))
        for name in dict.fromkeys(methods)
        if name not in known
    ]


def unlearn(
    model: Task | str | Path,
    request: DeletionRequest,
    method: str | Method = "npo",
    *,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    oracle: Task | None = None,
    progress: Progress | None = None,
) -> Unlearned:
    """Return a new model that has forgotten what the request names; the given model is left unchanged.

    Args:
        model: a task (such as ``CausalLM``), or a folder or hub name of a model of any kind.
        request: what to forget, keep and compare with.
        method: id of a method (see ``expunge methods``), or a configured method.
        settings: ``key: value`` pairs for the method and the training loop; dotted keys reach into "stop", "lora"
            and "select".
        folder: for the log and resumable checkpoints; the same folder continues a killed run.
        oracle: a model retrained without the forget set, for the stopping target "oracle".
        progress: called after every optimiser step with (steps done, steps in all, values).

    Raises:
        BadInput: unknown method or setting, missing example set, wrong kind of model, or weights
            that are NaN or infinite. Nothing has been computed then.
    """
    check_given(request, settings=settings)
    if not isinstance(method, str | Method):
        raise BadInput(Problem("method", f"is a {type(method).__name__}", "give the name of a method, or a method"))
    if folder is not None and Path(folder).is_file():
        raise BadInput(Problem(f"folder {folder}", "is a file", "give the name of a folder"))
    task = model if isinstance(model, Task) else load_task(model)
    for one in (task, oracle):
        if one is not None:
            check_values(one)
    if isinstance(method, str):
        chosen, train = settle(METHODS.get(method), dict(settings or {}))
    else:
        own = sorted(set(settings or {}) & set(type(method).Config.model_fields))
        if own:
            raise BadInput(Problem(own[0], "is a setting of a method that is already configured", "set it there"))
        configured, train = settle(type(method), dict(settings or {}))
        del configured
        chosen = method
    chosen.check(task, request)
    if train.select is not None and not isinstance(chosen, ObjectiveMethod):
        raise BadInput(
            Problem("select.by", f"is not for {chosen.id}, which does not train with the loop", "leave it out")
        )
    run = Run(train=train, folder=Path(folder) if folder else None, progress=progress, oracle=oracle)
    outcome = chosen.apply(task, request, run)
    # What forgets behind a guard is still behind it, whatever the method does to the weights.
    outcome.removal_level = getattr(outcome.model, "removal_level", outcome.removal_level)
    return outcome
