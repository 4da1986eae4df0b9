"""What can be known about a request of labelled examples before any compute is spent on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from datasets import Dataset

from expunge.errors import BadInput, Problem
from expunge.requests.places import some
from expunge.requests.preflight import FEW
from expunge.requests.request import DeletionRequest

LABEL, TARGET = "label", "target"


class Reader(Protocol):
    """Whatever turns an example set into a model's inputs and targets, such as a task."""

    def encode(self, examples: Dataset) -> Any:
        """Return inputs and targets.

        Raises:
            BadInput: examples that the model cannot be given.
        """
        ...


def labelled_preflight(request: DeletionRequest, reader: Reader | None = None) -> list[Problem]:
    """Find every problem of a request of labelled examples that can be known before compute is spent.

    Args:
        request: the request.
        reader: turns the sets into what the model is given; without one, what depends on the model is not checked.

    Returns:
        All problems, errors first. Errors: examples that the model cannot be given (NaN, mixed sizes, classes that its
        head does not know), a class that the forget set empties although the scenario does not say so or keeps a part
        of although it does, a retain set of one class only or of one target only. Warnings: sets too small for a
        verdict.
    """
    sets = request.sets()
    problems: list[Problem] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for role, examples in sets.items():
        if len(examples) < FEW:
            what = f"has {len(examples)} example(s); with fewer than {FEW} the verdict will likely be inconclusive"
            problems.append(Problem(role, what, "add further examples of the same kind, if there are any", "warning"))
        if reader is None:
            continue
        try:
            inputs = reader.encode(examples).inputs
        except BadInput as error:
            problems += [Problem(f"{role}: {p.where}", p.what, p.fix, p.severity) for p in error.problems]
        else:
            shapes[role] = tuple(getattr(inputs, "shape", (0,))[1:])
    if len(set(shapes.values())) > 1:
        what = "; ".join(f"{role} {'x'.join(map(str, shape))}" for role, shape in shapes.items())
        problems.append(Problem("sets", f"hold examples of different size: {what}", "bring them to one size"))
    # A label that the model does not know is one mistake, not also a class that is emptied.
    known = not any(f"'{LABEL}'" in problem.where for problem in problems)
    problems += (_emptied(request, sets) if known else []) + _one_sided(sets)
    return sorted(problems, key=lambda problem: problem.severity != "error")


def _emptied(request: DeletionRequest, sets: Mapping[str, Dataset]) -> list[Problem]:
    if "retain" not in sets or any(LABEL not in sets[role].column_names for role in ("forget", "retain")):
        return []
    given, kept = ({str(v) for v in sets[role][LABEL]} for role in ("forget", "retain"))
    if request.scenario == "class":
        if not (left := sorted(given & kept)):
            return []
        count = sum(str(v) in given for v in sets["retain"][LABEL])
        what = f"holds {count} example(s) of class(es) that are to be forgotten: {some(left)}"
        fix = "move them to the forget set, or say another scenario: examples, or group for a part of a class"
        return [Problem("retain", what, fix)]
    lost = sorted(given - kept)
    if not lost:
        return []
    what = f"would leave nothing of {len(lost)} class(es): {some(lost)}"
    return [Problem("forget", what, "say scenario=class if that is meant, or put examples of them into the retain set")]


def _one_sided(sets: Mapping[str, Dataset]) -> list[Problem]:
    retain = sets.get("retain")
    if retain is None or len(retain) < 2:
        return []
    for column, what in ((LABEL, "one class"), (TARGET, "one value of the target")):
        if column in retain.column_names and len({str(value) for value in retain[column]}) == 1:
            found = f"holds {what} only, '{retain[column][0]}', so there is nothing to tell apart"
            return [Problem("retain", found, "give the examples of the others too")]
    return []
