"""What a model with one prediction per example predicts: one of several classes, or numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.requests.places import own_columns, place, some

LABEL, TARGET = "label", "target"


class Outcome(ABC):
    """What is predicted.

    Attributes:
        column: the column of an example set that holds it.
        width: how many outputs the model's head has.
    """

    column: str
    width: int

    @abstractmethod
    def encode(self, examples: Dataset) -> Tensor:
        """Return the targets of examples.

        Raises:
            BadInput: a column that is not there, or values that cannot be targets; all of them at once.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return plain values that ``outcome_of`` makes an equal outcome of."""

    def _column(self, examples: Dataset, fix: str) -> list[Any]:
        if self.column not in examples.column_names:
            found = own_columns(examples)
            raise BadInput(Problem(f"column '{self.column}'", f"is not there; there are {found}", fix))
        return list(examples[self.column][:])

    def _refuse(self, examples: Dataset, values: Sequence[object], wrong: Sequence[int], why: str, fix: str) -> None:
        """Refuse these examples, if there are any, with what they hold and where they are."""
        if wrong:
            kinds = list(dict.fromkeys(repr(values[i]) for i in wrong))
            where = some(wrong, partial(place, examples))
            what = f"{len(wrong)} example(s) have {why}: {some(kinds)} ({where})"
            raise BadInput(Problem(f"column '{self.column}'", what, fix))


@dataclass(frozen=True)
class Classes(Outcome):
    """One of several classes.

    Attributes:
        names: name of each class, by index.
    """

    names: tuple[str, ...]
    column: str = field(default=LABEL, init=False)

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise BadInput(Problem("classes", f"are {list(self.names)}", "give at least two different names"))

    @property
    def width(self) -> int:  # type: ignore[override]
        """One score per class."""
        return len(self.names)

    def index(self, label: object) -> int | None:
        """Return the index of a class given by name or by index; None where there is no such class.

        None too for a number that is the name of one class and the index of another, and for a text that may be an
        index where classes are called by numbers.
        """
        if isinstance(label, bool) or not isinstance(label, int | str):
            return None
        text = str(label)
        named = self.names.index(text) if text in self.names else None
        numbered = int(text) if text.isdecimal() and int(text) < len(self.names) else None
        if isinstance(label, str):
            return named if named is not None or any(name.isdecimal() for name in self.names) else numbered
        return numbered if named is None else named if numbered in (None, named) else None

    def encode(self, examples: Dataset) -> Tensor:
        """Return (N,) int64 class indices; the column ``label`` holds names or indices.

        A column of numbers holds indices, or where classes are called by numbers and all of these are names, names.
        """
        labels = self._column(examples, "give each example its class in a column 'label'")
        usable = [isinstance(label, int | str) and not isinstance(label, bool) for label in labels]
        distinct = dict.fromkeys(label for label, may in zip(labels, usable, strict=True) if may)
        meant = {label: self.index(label) for label in distinct}
        numbers = [label for label in distinct if isinstance(label, int)]
        if numbers and all(0 <= label < len(self.names) for label in numbers):
            if all(str(label) in self.names for label in numbers):
                unclear = [i for i, label in enumerate(labels) if label in numbers and meant[label] is None]
                why = "a number that is the name of one class and the index of another"
                self._refuse(examples, labels, unclear, why, "give names, as text")
            else:
                meant |= {label: label for label in numbers}
        elif any(str(label) in self.names for label in numbers):
            meant |= {k: self.names.index(str(k)) if str(k) in self.names else None for k in numbers}
        found = [meant[label] if may else None for label, may in zip(labels, usable, strict=True)]
        wrong = [i for i, index in enumerate(found) if index is None]
        fix = f"the model's classes are 0 to {len(self.names) - 1}, or {some(self.names)}"
        self._refuse(examples, labels, wrong, "a label that the model's head does not know", fix)
        return torch.tensor(found, dtype=torch.int64)

    def settings(self) -> dict[str, Any]:
        return {"classes": list(self.names)}


@dataclass(frozen=True)
class Numbers(Outcome):
    """Numbers, on the scale on which the model learns them: ``(value - centre) / scale``.

    Squared errors, and everything that methods and audits compute from them, are on the model's scale, where 1 is the
    variance that the scale was made from.

    Attributes:
        centre, scale: per number; they are a unit of measurement, not knowledge that is forgotten.
    """

    centre: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    column: str = field(default=TARGET, init=False)

    def __post_init__(self) -> None:
        sound = len(self.centre) == len(self.scale) > 0 and all(map(math.isfinite, (*self.centre, *self.scale)))
        if not sound or min(self.scale) <= 0:
            what = f"has centre {self.centre} and scale {self.scale}"
            raise BadInput(Problem("outcome", what, "give finite numbers of the same count, scales above 0"))

    @property
    def width(self) -> int:  # type: ignore[override]
        """One output per number."""
        return len(self.centre)

    @classmethod
    def fit(cls, examples: Dataset) -> Numbers:
        """Return numbers scaled to mean 0 and variance 1 on an example set.

        Raises:
            BadInput: targets that are not finite numbers of one count, or that are all the same.
        """
        first = examples[0].get(TARGET) if len(examples) else None
        count = len(first) if isinstance(first, list) else 1
        values = cls((0.0,) * count, (1.0,) * count).encode(examples).double()
        scale = values.std(0, unbiased=False)
        if not bool((scale > 0).all()):
            what = f"is the same for all {len(examples)} examples, so there is nothing to learn"
            raise BadInput(Problem(f"column '{TARGET}'", what, "give examples with different targets"))
        return cls(tuple(values.mean(0).tolist()), tuple(scale.tolist()))

    def encode(self, examples: Dataset) -> Tensor:
        """Return (N, D) float32 scaled numbers; the column ``target`` holds a number or a list of them."""
        given = self._column(examples, "give each example its number(s) in a column 'target'")
        rows = [value if isinstance(value, list) else [value] for value in given]
        wrong = [
            i
            for i, row in enumerate(rows)
            if len(row) != self.width or not all(isinstance(v, int | float) and math.isfinite(v) for v in row)
        ]
        why = f"a target that is not {self.width} finite number(s)"
        self._refuse(examples, given, wrong, why, "correct these examples, or leave them out")
        values = torch.tensor(rows, dtype=torch.float64).reshape(-1, self.width)
        return (
            (values - torch.tensor(self.centre, dtype=torch.float64)) / torch.tensor(self.scale, dtype=torch.float64)
        ).float()

    def restore(self, outputs: Tensor) -> Tensor:
        """Map (N, D) outputs of the model back to the unit of the data."""
        return outputs.double().cpu() * torch.tensor(self.scale, dtype=torch.float64) + torch.tensor(
            self.centre, dtype=torch.float64
        )

    def settings(self) -> dict[str, Any]:
        return {"centre": list(self.centre), "scale": list(self.scale)}


def outcome_of(settings: Mapping[str, Any]) -> Outcome:
    """Return the outcome that ``Outcome.settings`` describes.

    Raises:
        BadInput: it describes none.
    """
    try:
        if "classes" in settings:
            return Classes(tuple(map(str, settings["classes"])))
        return Numbers(tuple(map(float, settings["centre"])), tuple(map(float, settings["scale"])))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(Problem("outcome", f"cannot be read: {error}", "write the model again")) from error


def class_names(config: Any) -> tuple[str, ...]:
    """Return the names of a transformers configuration's classes, by index."""
    names: Sequence[str] = [str(config.id2label[i]) for i in range(config.num_labels)]
    return tuple(names)
