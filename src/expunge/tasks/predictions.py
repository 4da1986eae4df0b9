"""What one forward pass tells about the examples of a set; every audit of classifiers and regressors reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Outputs of one model for n examples, in evaluation mode and without augmentation.

    Attributes:
        ids: the examples.
        outputs: (n, C) logits, or (n, D) numbers on the scale on which the model learns.
        targets: (n,) int64 classes, or (n, D) true numbers on the same scale.
        features: (n, H) what the last linear layer is given; None where the model has no such layer.
        classes: names of the classes; empty for numbers.
        centre, scale: (D,) how a number on the model's scale becomes one in the unit of the data; empty for classes.
    """

    ids: Sequence[str]
    outputs: Array
    targets: NDArray[Any]
    features: NDArray[np.float32] | None = None
    classes: tuple[str, ...] = ()
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def log_probabilities(self) -> Array:
        """(n, C) log-softmax of the logits, in nats."""
        assert self.classes
        shifted = self.outputs - self.outputs.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

    @cached_property
    def probabilities(self) -> Array:
        """(n, C) softmax of the logits."""
        return np.asarray(np.exp(self.log_probabilities))

    @cached_property
    def nll(self) -> Array:
        """(n,) cross-entropy in nats, or the squared error averaged over the numbers, on the model's scale."""
        if not self.classes:
            return np.asarray(np.square(self.outputs - self.targets).mean(-1))
        return np.asarray(-self.log_probabilities[np.arange(len(self)), self.targets])

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """(n,) the most probable class."""
        assert self.classes
        return np.asarray(self.outputs.argmax(-1))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(n,) whether the most probable class is the right one."""
        return np.asarray(self.predicted == self.targets)

    @cached_property
    def absolute_error(self) -> Array:
        """(n,) absolute error averaged over the numbers, in the unit of the data."""
        assert self.scale
        return np.asarray((np.abs(self.outputs - self.targets) * np.asarray(self.scale)).mean(-1))

    def by_id(self, values: NDArray[Any]) -> dict[str, float]:
        """Return example id -> value for (n,) values."""
        return dict(zip(self.ids, values.astype(float).tolist(), strict=True))

    def in_words(self) -> dict[str, str]:
        """Return example id -> what the model predicts: a class with its probability, or numbers in their unit."""
        if self.classes:
            best = self.probabilities.max(-1)
            said = [f"{self.classes[k]} ({p:.0%})" for k, p in zip(self.predicted, best, strict=True)]
        else:
            rows = self.outputs * np.asarray(self.scale) + np.asarray(self.centre)
            said = [", ".join(f"{value:.4g}" for value in row) for row in rows]
        return dict(zip(self.ids, said, strict=True))

    def take(self, indices: Sequence[int] | NDArray[Any]) -> Predictions:
        """Return the predictions at these indices, in this order."""
        chosen = np.asarray(indices, dtype=int)
        features = None if self.features is None else self.features[chosen]
        ids = [self.ids[i] for i in chosen]
        return Predictions(
            ids, self.outputs[chosen], self.targets[chosen], features, self.classes, self.centre, self.scale
        )

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(n,) whether all outputs of an example are finite."""
        return np.asarray(np.isfinite(self.outputs).all(-1))


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several sets under one model as those of one set, in this order.

    Raises:
        ValueError: no parts, or parts of different outcomes.
    """
    if not parts or len({(part.classes, part.centre, part.scale) for part in parts}) > 1:
        raise ValueError("predictions can be joined only where they are of one model")
    first, rows = parts[0], [part.features for part in parts]
    known = [row for row in rows if row is not None]
    return Predictions(
        [i for part in parts for i in part.ids],
        np.concatenate([part.outputs for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate(known) if len(known) == len(rows) else None,
        first.classes,
        first.centre,
        first.scale,
    )


@dataclass(frozen=True, eq=False)
class ExampleRow:
    """One example of a set: what a model with one prediction per example is asked, as a pair is of a language model.

    Attributes:
        examples: the set.
        index: where it is in there.
    """

    examples: Dataset
    index: int


@dataclass(frozen=True)
class ExampleScore:
    """How well a model predicts one example.

    Attributes:
        nll: cross-entropy in nats, or squared error on the model's scale.
    """

    nll: float

    @property
    def probability(self) -> float:
        """Probability of the right class; for numbers ``exp(-squared error)``, 1 where the prediction is exact."""
        return float(np.exp(-self.nll))


def by_set(rows: Sequence[ExampleRow]) -> list[tuple[Dataset, list[int]]]:
    """Group rows by their set: each set with the positions in ``rows`` of what is asked of it."""
    found: dict[int, tuple[Dataset, list[int]]] = {}
    for position, row in enumerate(rows):
        found.setdefault(id(row.examples), (row.examples, []))[1].append(position)
    return list(found.values())
