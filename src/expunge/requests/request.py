"""What is asked: which examples must be forgotten, kept and compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from datasets import Dataset

from expunge.errors import BadInput, Problem
from expunge.requests.places import pair_of, place, some

Scenario = Literal["examples", "class", "group", "range", "corrupted", "concept", "entity", "behaviour"]
ROLES = ("forget", "retain", "holdout")


def example_id(content: Mapping[str, Any]) -> str:
    """Identify an example by what it says, so that ids never depend on order, file or loader.

    Args:
        content: the fields that make the example what it is (for language: prompt and answer, or messages).

    Returns:
        16 hexadecimal digits; equal content gives equal ids.
    """
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("utf-8"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class DeletionRequest:
    """A deletion request.

    Every example set is a ``datasets.Dataset`` with a unique string column ``id``.

    Attributes:
        forget: the examples to delete; never empty.
        retain: examples whose knowledge must stay, or None.
        holdout: examples like the forget set that the model never saw, or None. The control where no oracle exists.
        scenario: what kind of thing is to be forgotten; named by the user, never inferred.
        known_fraction: for corrective requests, the share of the bad examples that ``forget`` names, in (0, 1].
        name: a label for reports.

    Raises:
        BadInput: empty forget set, missing or duplicate ids, sets that overlap, or a value out of range.
            All problems are in one error.
    """

    forget: Dataset
    retain: Dataset | None = None
    holdout: Dataset | None = None
    scenario: Scenario = "examples"
    known_fraction: float = 1.0
    name: str = "request"
    fingerprint: str = field(init=False, default="")

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise BadInput(problems)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.scenario}|{self.known_fraction}".encode())
        for role, examples in self.sets().items():
            digest.update(f"|{role}|".encode())
            for identity in sorted(examples["id"][:]):
                digest.update(identity.encode())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def sets(self) -> dict[str, Dataset]:
        """Return the example sets that are present, by role."""
        return {role: examples for role in ROLES if (examples := getattr(self, role)) is not None}

    def _problems(self) -> Sequence[Problem]:
        return request_problems(self.sets(), scenario=self.scenario, known_fraction=self.known_fraction)


def check_given(request: object, **mappings: object) -> None:
    """Refuse what is no request, and options that are not keys with values: easily mixed up where nothing checks types.

    Raises:
        BadInput: all of it at once.
    """
    problems = [
        Problem(name, f"is a {type(given).__name__}", "give a dict: {'key': value}")
        for name, given in mappings.items()
        if given is not None and not isinstance(given, Mapping)
    ]
    if not isinstance(request, DeletionRequest):
        fix = "make one with expunge.read_request(forget, retain=..., holdout=...)"
        problems.insert(0, Problem("request", f"is a {type(request).__name__}", fix))
    if problems:
        raise BadInput(problems)


def request_problems(
    sets: Mapping[str, Dataset], *, scenario: str = "examples", known_fraction: float = 1.0
) -> list[Problem]:
    """Find everything that makes a request impossible.

    Args:
        sets: the example sets that there are, by role; a role may be left out, also ``forget``.
        scenario: what kind of thing is to be forgotten.
        known_fraction: share of the bad examples that ``forget`` names.

    Returns:
        All problems: unknown scenario, a value out of range, sets that are empty, lack ids or repeat them, and
        examples that two sets share, with the file and line of both where they are known.
    """
    problems: list[Problem] = []
    if scenario not in get_args(Scenario):
        problems.append(
            Problem("scenario", f"'{scenario}' is not a scenario", f"use one of {', '.join(get_args(Scenario))}")
        )
    if not 0.0 < known_fraction <= 1.0:
        problems.append(Problem("known_fraction", f"is {known_fraction}", "give a number in (0, 1]"))
    ids: dict[str, dict[str, int]] = {}
    for role, examples in sets.items():
        if not isinstance(examples, Dataset):
            kind = type(examples).__name__
            problems.append(Problem(role, f"is a {kind}, not a Dataset", "read it with expunge.data.read_examples"))
            continue
        if "id" not in examples.column_names:
            problems.append(Problem(role, "has no column 'id'", "read it with expunge.data.read_examples"))
            continue
        if not len(examples):
            problems.append(Problem(role, "is empty", "give at least one example, or leave the set out"))
        first: dict[str, int] = {}
        repeats: list[tuple[int, int]] = []
        for index, identity in enumerate(examples["id"][:]):
            if not isinstance(identity, str) or not identity:
                problems.append(
                    Problem(
                        f"{role}: {place(examples, index)}",
                        f"has the id {identity!r}, which is not text",
                        "read it with expunge.data.read_examples",
                    )
                )
            elif identity in first:
                repeats.append((index, first[identity]))
            else:
                first[identity] = index
        if repeats:
            problems.append(
                Problem(
                    role,
                    f"repeats {len(repeats)} example(s): {some(repeats, pair_of(examples, examples))}",
                    "remove them, or drop repeats: --duplicates drop (in Python: duplicates='drop')",
                )
            )
        ids[role] = first
    for one, other in (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout")):
        shared = [identity for identity in ids.get(one, {}) if identity in ids.get(other, {})]
        if shared:
            pairs = [(ids[one][identity], ids[other][identity]) for identity in shared]
            what = f"share {len(shared)} example(s): {some(pairs, pair_of(sets[one], sets[other]))}"
            problems.append(Problem(f"{one} and {other}", what, f"take them out of the {other} set"))
    return problems
