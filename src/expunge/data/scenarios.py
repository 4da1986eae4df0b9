"""Deletion requests made of a labelled training set: which part of it is to be forgotten, and what it is compared with.

Which scenario a request is of is said by calling one of these functions, never inferred from a count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from datasets import Dataset

from expunge.errors import BadInput, Problem
from expunge.requests.places import some
from expunge.requests.request import DeletionRequest, Scenario

LABEL, TARGET, GROUP, CORRUPTED = "label", "target", "group", "corrupted"


def luck(seed: int, identity: str) -> float:
    """Return the number in [0, 1) that (seed, id) draws; the lowest of a set are chosen first."""
    digest = hashlib.blake2b(f"{seed}\x1f{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / (1 << 64)


def drawn(examples: Dataset, count: int, seed: int) -> list[int]:
    """Return ``count`` indices drawn by (seed, id), so that the order of the set does not matter; ascending."""
    ids = list(examples["id"][:])
    return sorted(sorted(range(len(ids)), key=lambda index: luck(seed, ids[index]))[:count])


def random_examples(
    train: Dataset, share: float, seed: int, *, unseen: Dataset | None = None, name: str = "random examples"
) -> DeletionRequest:
    """Ask to forget a random share of a training set.

    Args:
        train: the training set.
        share: of its examples, in (0, 1).
        seed: of the draw.
        unseen: examples that the model never saw; all of them are the holdout set.
        name: a label for reports.

    Raises:
        BadInput: a share that leaves nothing to forget or nothing to retain.
    """
    count = round(share * len(train)) if math.isfinite(share) else 0
    if not 0 < count < len(train):
        what = f"is {share}, which is {count} of {len(train)} examples"
        raise BadInput(Problem("share", what, "give a share that leaves something to forget and to retain"))
    chosen = set(drawn(train, count, seed))
    return _request(train, lambda i: i in chosen, "examples", unseen, name)


def whole_class(
    train: Dataset, label: str | int, *, unseen: Dataset | None = None, name: str | None = None
) -> DeletionRequest:
    """Ask to forget a class; the holdout set is what there is of it among unseen examples.

    Raises:
        BadInput: no such class, or no other one.
    """
    return _by_value(train, LABEL, label, "class", unseen, name or f"class {label}")


def subgroup(
    train: Dataset, value: str | int, *, column: str = GROUP, unseen: Dataset | None = None, name: str | None = None
) -> DeletionRequest:
    """Ask to forget the examples with one value of an attribute, such as a sub-class or a region.

    Raises:
        BadInput: no such column or value, or every example has it.
    """
    return _by_value(train, column, value, "group", unseen, name or f"{column} {value}")


def value_range(
    train: Dataset,
    low: float,
    high: float,
    *,
    column: str = TARGET,
    unseen: Dataset | None = None,
    name: str | None = None,
) -> DeletionRequest:
    """Ask to forget the examples whose value lies in ``[low, high)``, such as an age band of a regressor.

    Raises:
        BadInput: no such column, or a range that holds none or all of the examples.
    """
    values = _column(train, column)
    inside = [isinstance(v, int | float) and low <= v < high for v in values]
    if not any(inside) or all(inside):
        known = [v for v in values if isinstance(v, int | float)]
        where = f"; values lie between {min(known):g} and {max(known):g}" if known else ""
        what = f"[{low:g}, {high:g}) holds {sum(inside)} of {len(values)} examples{where}"
        raise BadInput(Problem(f"range of '{column}'", what, "give a range that holds some of them and not all"))
    kept = None
    if unseen is not None:
        there = _column(unseen, column)
        kept = unseen.select([i for i, v in enumerate(there) if isinstance(v, int | float) and low <= v < high])
    return _request(train, inside.__getitem__, "range", kept, name or f"{column} in [{low:g}, {high:g})")


def corrupted(
    train: Dataset, known_fraction: float, seed: int, *, unseen: Dataset | None = None, name: str | None = None
) -> DeletionRequest:
    """Ask to undo corrupted examples of which only a fraction is known; the others stay in the retain set.

    Args:
        train: a training set with a column ``corrupted``, see ``expunge.data.corruptions``.
        known_fraction: of the corrupted examples, in (0, 1].
        seed: of the draw.
        unseen: clean examples that the model never saw; all of them are the holdout set.
        name: a label for reports.

    Raises:
        BadInput: nothing is corrupted, or the fraction is out of range or names no example.
    """
    bad = [i for i, flag in enumerate(_column(train, CORRUPTED)) if flag]
    count = round(known_fraction * len(bad)) if 0 < known_fraction <= 1 else 0
    if not count:
        what = f"is {known_fraction}, which names {count} of {len(bad)} corrupted examples"
        raise BadInput(Problem("known_fraction", what, "give a number in (0, 1] that names at least one"))
    known = {bad[k] for k in drawn(train.select(bad), count, seed)}
    label = name or f"{known_fraction:.0%} of the corrupted examples"
    return _request(train, lambda i: i in known, "corrupted", unseen, label, known_fraction)


def _by_value(
    train: Dataset, column: str, value: object, scenario: Scenario, unseen: Dataset | None, name: str
) -> DeletionRequest:
    values = _column(train, column)
    # A label that is written as a number on the command line is meant as it is stored.
    matches = [v == value or str(v) == str(value) for v in values]
    if not any(matches):
        kinds = sorted({str(v) for v in values})
        raise BadInput(Problem(f"column '{column}'", f"'{value}' is not there", f"there are {some(kinds, most=12)}"))
    if all(matches):
        what = f"all {len(values)} examples have '{value}', so nothing would be left"
        raise BadInput(Problem(f"column '{column}'", what, "give a training set with others"))
    kept = None
    if unseen is not None:
        there = _column(unseen, column)
        kept = unseen.select([i for i, v in enumerate(there) if v == value or str(v) == str(value)])
    return _request(train, matches.__getitem__, scenario, kept, name)


def _column(examples: Dataset, column: str) -> list[Any]:
    if column not in examples.column_names:
        found = ", ".join(examples.column_names)
        raise BadInput(Problem(f"column '{column}'", f"is not there; there are {found}", "correct the name"))
    return list(examples[column][:])


def _request(
    train: Dataset,
    forget: Callable[[int], bool],
    scenario: Scenario,
    holdout: Dataset | None,
    name: str,
    known_fraction: float = 1.0,
) -> DeletionRequest:
    inside = [i for i in range(len(train)) if forget(i)]
    outside = [i for i in range(len(train)) if not forget(i)]
    make = partial(_selected, train)
    return DeletionRequest(
        make(inside),
        make(outside) if outside else None,
        holdout if holdout is not None and len(holdout) else None,
        scenario=scenario,
        known_fraction=known_fraction,
        name=name,
    )


def _selected(examples: Dataset, indices: Sequence[int]) -> Dataset:
    return examples.select(list(indices))
