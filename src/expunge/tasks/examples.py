"""The contract of encoded examples: model inputs made once, of which the training loop takes batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Positions = Literal["answer", "label", "attended", "all"]
Some = TypeVar("Some", bound="EncodedExamples")


class EncodedExamples(ABC):
    """Examples of one set, ready for a model.

    Attributes:
        ids: example ids.
    """

    ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def length(self, index: int) -> int:
        """What an example takes in a padded batch: its tokens; 1 where all examples are of one size."""

    @abstractmethod
    def labelled(self, index: int) -> int:
        """How many labelled rows an example has: its answer tokens; 1 where it has one label."""

    @abstractmethod
    def rows(self, indices: Sequence[int], positions: Positions) -> int:
        """How many rows are read of a batch of these examples."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Bytes that are equal for equal inputs and labels only."""

    @abstractmethod
    def take(self: Some, indices: Sequence[int]) -> Some:
        """Return the examples at these indices, in this order."""

    @abstractmethod
    def __add__(self: Some, other: Some) -> Some:
        """Return these examples and others after them."""


@dataclass(frozen=True, eq=False)
class LabelledExamples(EncodedExamples):
    """Examples with one label or one vector of numbers each.

    Attributes:
        ids: example ids.
        inputs: (N, ...) tensor where all examples are of one size (pixels, table rows), else one (T,) tensor of token
            ids per example.
        targets: (N,) int64 class indices, or (N, D) float32 numbers.
    """

    ids: Sequence[str]
    inputs: Tensor | Sequence[Tensor]
    targets: Tensor

    def length(self, index: int) -> int:
        """Tokens of an example, or 1."""
        return 1 if isinstance(self.inputs, Tensor) else len(self.inputs[index])

    def labelled(self, index: int) -> int:
        """One label."""
        return 1

    def rows(self, indices: Sequence[int], positions: Positions) -> int:
        """One prediction per example, whichever positions are asked for."""
        return len(indices)

    def content(self, index: int) -> bytes:
        """Input and label as they are in memory."""
        return _bytes(self.inputs[index]) + _bytes(self.targets[index])

    def take(self, indices: Sequence[int]) -> LabelledExamples:
        """Return the examples at these indices, in this order."""
        chosen: Any = (
            self.inputs[list(indices)] if isinstance(self.inputs, Tensor) else [self.inputs[i] for i in indices]
        )
        return LabelledExamples([self.ids[i] for i in indices], chosen, self.targets[list(indices)])

    def __add__(self, other: LabelledExamples) -> LabelledExamples:
        joined: Any
        if isinstance(self.inputs, Tensor):
            assert isinstance(other.inputs, Tensor)
            parts = [self.inputs, other.inputs]
            if self.inputs.dtype != other.inputs.dtype:
                # Whole-number pixels go from 0 to 255 and others are fractions: beside them they have to be fractions.
                parts = [part.float() / 255 if part.dtype == torch.uint8 else part.float() for part in parts]
            joined = torch.cat(parts)
        else:
            joined = [*self.inputs, *other.inputs]
        return LabelledExamples([*self.ids, *other.ids], joined, torch.cat([self.targets, other.targets]))

    def with_targets(self, targets: Tensor) -> LabelledExamples:
        """Return the same inputs with other labels, as relabelling methods train on."""
        return replace(self, targets=targets)


def _bytes(tensor: Tensor) -> bytes:
    return np.ascontiguousarray(tensor.cpu().numpy()).tobytes()
