"""Reading a whole deletion request, so that the problems of all its files come in one error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from expunge.data.columns import ALIASES
from expunge.data.files import Duplicates, try_read_examples
from expunge.data.labelled import NAMES, Inputs, try_read_labelled
from expunge.data.sources import Source
from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.requests.request import ROLES, DeletionRequest, Scenario, request_problems


def read_request(
    forget: Source,
    retain: Source | None = None,
    holdout: Source | None = None,
    *,
    scenario: Scenario = "examples",
    name: str = "request",
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "refuse",
    known_fraction: float = 1.0,
    limit: int | None = None,
    split: str | Mapping[str, str] | None = None,
    inputs: Inputs | None = None,
) -> DeletionRequest:
    """Read a deletion request.

    Args:
        forget: source of the examples to delete; see ``read_examples`` for what a source can be.
        retain: source of the examples that must stay known.
        holdout: source of examples like the forget set that the model never saw.
        scenario: what kind of thing is to be forgotten.
        name: a label for reports.
        columns: canonical name -> name in the source, for all sources; ``"retain.answer"`` for one of them only.
        duplicates: "refuse" examples that say the same within a source, or "drop" all but the first.
        known_fraction: for corrective requests, the share of the bad examples that ``forget`` names, in (0, 1].
        limit: read the first so many rows of each source only.
        split: which split, of sources that have several; or role -> split.
        inputs: for a classifier or regressor, what it is given: "image", "text" or "tabular"; see ``read_labelled``.

    Returns:
        The request.

    Raises:
        BadInput: all problems of all sources, and the examples that two readable sources share, in one error.
    """
    problems: list[Problem] = []
    if inputs is not None and inputs not in get_args(Inputs):
        fix = near_names(str(inputs), list(get_args(Inputs)))
        raise BadInput(Problem("inputs", f"'{inputs}' is nothing that a model is given", fix))
    if forget is None:
        problems.append(Problem("forget", "is None", "say what is to be forgotten"))
    sources = {
        role: source for role, source in zip(ROLES, (forget, retain, holdout), strict=True) if source is not None
    }
    known = ALIASES if inputs is None else NAMES
    for key in columns or {}:
        role, dot, column = key.partition(".")
        if dot and (role not in ROLES or column not in known):
            fix = f"write a column, or role.column, with a role of {', '.join(ROLES)}"
            problems.append(
                Problem("columns", f"'{key}' names no column of a set", f"{fix}; columns: {', '.join(known)}")
            )
    splits = dict.fromkeys(sources, split) if split is None or isinstance(split, str) else dict(split)
    for role in splits:
        if role not in sources:
            what = "is not a set of this request" if role not in ROLES else "is not given"
            problems.append(Problem(f"splits.{role}", what, f"name a split of {', '.join(sources)}"))
    sets = {}
    for role, source in sources.items():
        # The more special setting last, so that it wins.
        mapping = {key: actual for key, actual in (columns or {}).items() if "." not in key}
        prefix = f"{role}."
        mapping |= {k.removeprefix(prefix): v for k, v in (columns or {}).items() if k.startswith(prefix)}
        options: dict[str, Any] = {
            "columns": mapping,
            "duplicates": duplicates,
            "limit": limit,
            "split": splits.get(role),
        }
        if inputs is None:
            examples, found = try_read_examples(source, **options, role=role)
        else:
            examples, found = try_read_labelled(source, inputs, **options, role=role)
        problems += found.all()
        if examples is not None:
            sets[role] = examples
    problems += request_problems(sets, scenario=scenario, known_fraction=known_fraction)
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))
    return DeletionRequest(**sets, scenario=scenario, known_fraction=known_fraction, name=name)
