"""Rows of a table: numbers brought to mean 0 and variance 1, categories as one-hot columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.requests.places import SOURCE_FILE, SOURCE_LINE, own_columns, place, some
from expunge.tasks.inputs import Inputs
from expunge.tasks.outcomes import LABEL, TARGET

# Columns of an example set that say what an example is, not what the model is given.
NOT_INPUTS = frozenset({"id", LABEL, TARGET, "group", "corrupted", "clean_label", SOURCE_FILE, SOURCE_LINE})
MOST_CATEGORIES = 100


@dataclass(frozen=True)
class TableInputs(Inputs):
    """Columns of a table, in a fixed order.

    Attributes:
        numbers: column -> (centre, scale), subtracted and divided by.
        categories: column -> the values that have a one-hot column of their own. A value that is not among them, such
            as one that only the holdout set has, is zero in all of them.
        missing: "refuse" numbers that are missing or NaN, or put the column's centre in their place ("mean").
    """

    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: Literal["refuse", "mean"] = "refuse"

    name: ClassVar[str] = "tabular"

    @property
    def width(self) -> int:
        """Numbers per example that the model is given."""
        return len(self.numbers) + sum(map(len, self.categories.values()))

    @classmethod
    def fit(
        cls,
        examples: Dataset,
        columns: Sequence[str] | None = None,
        missing: Literal["refuse", "mean"] = "refuse",
    ) -> TableInputs:
        """Take columns, scales and categories from an example set.

        Args:
            examples: the set that the model is trained on.
            columns: which columns to use; by default all but ids, labels, targets, groups and where rows came from.
            missing: see the class.

        Raises:
            BadInput: a column that is not there, holds neither numbers nor text, or has too many categories.
        """
        names = list(columns) if columns is not None else [c for c in examples.column_names if c not in NOT_INPUTS]
        problems: list[Problem] = []
        numbers: dict[str, tuple[float, float]] = {}
        categories: dict[str, tuple[str, ...]] = {}
        for name in names:
            values = examples[name] if name in examples.column_names else None
            if values is None:
                found = own_columns(examples)
                problems.append(Problem(f"column '{name}'", f"is not there; there are {found}", "correct the name"))
                continue
            values = list(values[:])
            if all(value is None or _is_number(value) for value in values):
                known = np.array([float(v) for v in values if v is not None and math.isfinite(v)])
                if not len(known):
                    problems.append(Problem(f"column '{name}'", "holds no number at all", "leave it out"))
                    continue
                spread = float(known.std())
                numbers[name] = (float(known.mean()), spread if spread > 0 else 1.0)
            elif all(isinstance(value, str | bool) for value in values):
                kinds = sorted({str(value) for value in values})
                if len(kinds) > MOST_CATEGORIES:
                    what = f"holds {len(kinds)} different texts, which is no category"
                    problems.append(Problem(f"column '{name}'", what, "leave it out"))
                categories[name] = tuple(kinds)
            else:
                kind = ", ".join(sorted({type(value).__name__ for value in values}))
                what = f"holds {kind}, neither numbers nor texts alone"
                problems.append(Problem(f"column '{name}'", what, "give it one type, or leave it out"))
        if not names:
            problems.append(Problem("columns", "hold nothing to give the model", "name at least one"))
        if problems:
            raise BadInput(problems)
        return cls(numbers, categories, missing)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TableInputs:
        """Return inputs from plain values.

        Raises:
            BadInput: they are not those of a table.
        """
        try:
            numbers = {str(k): (float(v[0]), float(v[1])) for k, v in settings["numbers"].items()}
            categories = {str(k): tuple(map(str, v)) for k, v in settings["categories"].items()}
            return cls(numbers, categories, settings.get("missing", "refuse"))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BadInput(Problem("table settings", f"cannot be read: {error}", "write the model again")) from error

    def refit(self, examples: Dataset) -> TableInputs:
        """Return the same columns and categories, with the numbers' scales taken from these examples."""
        again = TableInputs.fit(examples, [*self.numbers], self.missing) if self.numbers else self
        return TableInputs(again.numbers, self.categories, self.missing)

    def encode(self, examples: Dataset) -> Tensor:
        """Return (N, width) float32 rows."""
        problems: list[Problem] = []
        columns: list[NDArray[np.float32]] = []
        for name in (*self.numbers, *self.categories):
            if name not in examples.column_names:
                found = ", ".join(c for c in examples.column_names if c not in NOT_INPUTS)
                problems.append(Problem(f"column '{name}'", f"is not there; there are {found}", "add it"))
                continue
            values = list(examples[name][:])
            if name in self.numbers:
                # One cell that is no number makes a column of a text file one of texts; the others still are numbers.
                values = [_as_number(value) for value in values]
            if name in self.categories:
                known = self.categories[name]
                columns += [np.array([str(v) == kind for v in values], np.float32) for kind in known]
                continue
            centre, scale = self.numbers[name]
            lacking = [i for i, v in enumerate(values) if not _is_number(v) or not math.isfinite(v)]
            filled = [i for i in lacking if values[i] is None or _is_nan(values[i])]
            wrong = lacking if self.missing == "refuse" else [i for i in lacking if i not in set(filled)]
            if wrong:
                shown = some(wrong, partial(place, examples))
                what = f"{len(wrong)} value(s) are missing, NaN, infinite or no numbers: {shown}"
                problems.append(Problem(f"column '{name}'", what, "fill them in, or make the model with missing=mean"))
                continue
            gaps = set(filled)
            row = [0.0 if i in gaps else (float(v) - centre) / scale for i, v in enumerate(values)]
            columns.append(np.array(row, np.float32))
        if problems:
            raise BadInput(problems)
        return torch.from_numpy(np.stack(columns, axis=1))

    def batch(self, inputs: Tensor | Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return (B, width) float32 rows."""
        assert isinstance(inputs, Tensor)
        return {"features": inputs.to(device)}

    def settings(self) -> dict[str, Any]:
        return {"kind": self.name, **asdict(self)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(value: Any) -> Any:
    """Return the number that a text spells, nothing for an empty one; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value.strip() else None
    except ValueError:
        return value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
