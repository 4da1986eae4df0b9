"""Choose a forget set: one call from a training set to a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from pydantic import ValidationError

from expunge.data.scenarios import LABEL
from expunge.errors import BadInput, Problem
from expunge.forget_sets.base import FORGET_SETS, ForgetSet, ForgetSetSelector, Heard, Hold, Units, take
from expunge.registry import near_names
from expunge.requests.request import DeletionRequest, Scenario, request_problems
from expunge.tasks.base import Task


def configured(selector: str | ForgetSetSelector, settings: Mapping[str, Any] | None = None) -> ForgetSetSelector:
    """Return a selector with its settings.

    Args:
        selector: id, or one that is configured already.
        settings: of the selector.

    Raises:
        BadInput: no such selector, or every setting that is wrong.
    """
    if isinstance(selector, ForgetSetSelector):
        if settings:
            what = "is given to a selector that is already configured"
            raise BadInput(Problem(next(iter(settings)), what, "set it there"))
        return selector
    chosen = FORGET_SETS.get(selector)
    try:
        return chosen(chosen.Config(**dict(settings or {})))
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"][:1])
            given = f" (given: {item['input']!r:.80})" if item["type"] != "missing" else ""
            fix = f"see `expunge forget-sets {chosen.id}`"
            if item["type"] == "extra_forbidden":
                fix = near_names(key, list(chosen.Config.model_fields))
            problems.append(Problem(f"{chosen.id}: {key}", f"{item['msg'][:1].lower()}{item['msg'][1:]}{given}", fix))
        raise BadInput(problems) from None


def select_forget_set(
    train: Dataset,
    selector: str | ForgetSetSelector,
    task: Task | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    unseen: Dataset | None = None,
    seed: int = 0,
    hold: Hold | None = None,
    heard: Heard | None = None,
) -> ForgetSet:
    """Choose what to forget of a training set.

    Args:
        train: the training set, with ids.
        selector: id (see ``expunge forget-sets``), or a configured selector.
        task: the model trained on all of it, for selectors that ask one; it is left as it is.
        settings: of the selector.
        unseen: examples that the model never saw. They become the holdout set where they are like what is forgotten:
            of a random choice, and of classes (those of the classes to be forgotten). Otherwise they are ``test``.
        seed: everything random follows from it.
        hold: goes on with a search that was stopped.
        heard: is told of every step of a search.

    Raises:
        BadInput: every reason why nothing can be chosen, before any compute.
    """
    if not isinstance(train, Dataset):
        fix = "read it with expunge.data.labelled.read_labelled or expunge.data.files.read_examples"
        raise BadInput(Problem("training set", f"is a {type(train).__name__}, not a dataset", fix))
    chosen = configured(selector, settings)
    problems = request_problems({"retain": train}) + chosen.problems(train, None if task is None else task.kind)
    problems = [Problem("training set", p.what, p.fix) if p.where == "retain" else p for p in problems]
    if problems:
        raise BadInput(problems)
    units = Units.read(train, chosen.unit)
    before = None if task is None else task.cost.snapshot()
    choice = chosen.choose(train, units, task, seed, hold or Hold(), heard or (lambda done, of, values: None))
    count = chosen.count(units)
    classes = [str(v) for v in train[LABEL][:]] if chosen.unit == "example" and LABEL in train.column_names else ()
    taken = take(choice, units, count, classes)
    alike = chosen.like_unseen or units.kind == "class"
    return ForgetSet(
        request=request_of(train, units, taken, unseen if alike else None, f"{chosen.id} forget set"),
        selector=chosen.id,
        settings=chosen.config.model_dump(mode="json"),
        count=len(taken),
        unit=chosen.unit,
        scores=dict(zip(units.names, map(float, choice.scores), strict=True)),
        history=choice.history,
        cost={} if task is None or before is None else (task.cost - before).to_dict(),
        test=None if alike else unseen,
    )


def request_of(train: Dataset, units: Units, taken: list[int], unseen: Dataset | None, name: str) -> DeletionRequest:
    """Return the request to forget some units of a training set; the rest is retained."""
    inside = set(taken)
    forget = [i for i, unit in enumerate(units.of) if unit in inside]
    retain = [i for i, unit in enumerate(units.of) if unit not in inside]
    scenario: Scenario = "class" if units.kind == "class" else "examples"
    holdout = unseen
    if unseen is not None and units.kind == "class":
        names = {units.names[unit] for unit in taken}
        holdout = unseen.select([i for i, value in enumerate(unseen[LABEL][:]) if str(value) in names])
    return DeletionRequest(
        train.select(forget),
        train.select(retain),
        holdout if holdout is not None and len(holdout) else None,
        scenario=scenario,
        name=name,
    )
