"""The contract of inputs: how the examples of one kind become what a model is called with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor


class Inputs(ABC):
    """How examples are put into a model.

    Class attributes:
        name: "image", "text" or "tabular".
        column: the column of an example set that holds what the model is given; "" where it is several.
    """

    name: ClassVar[str]
    column: ClassVar[str] = ""

    @abstractmethod
    def encode(self, examples: Dataset) -> Tensor | Sequence[Tensor]:
        """Return what ``LabelledExamples.inputs`` holds.

        Raises:
            BadInput: columns that are not there and values that cannot be used; all of them at once.
        """

    @abstractmethod
    def batch(self, inputs: Tensor | Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return tensors with a leading batch dimension, by the names that transformers models give them."""

    def vary(self, inputs: Tensor | Sequence[Tensor], ids: Sequence[str], seed: int) -> Tensor | Sequence[Tensor]:
        """Return the inputs as training sees them, changed at random by (seed, id); as they are unless asked for."""
        return inputs

    @property
    def varies(self) -> bool:
        """Whether ``vary`` changes anything."""
        return False

    def refit(self, examples: Dataset) -> Inputs:
        """Return inputs whose constants are taken from these examples alone, for exact retraining."""
        return self

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return plain values that ``inputs_of`` makes equal inputs of."""

    def save(self, folder: Path) -> None:  # noqa: B027 - most inputs are described by their settings
        """Write files that the library of the model looks for beside the weights."""


def inputs_of(settings: Mapping[str, Any], folder: Path) -> Inputs:
    """Return the inputs that ``Inputs.settings`` describes.

    Args:
        settings: with the key "kind".
        folder: where files of theirs are.

    Raises:
        BadInput: they describe none.
    """
    from expunge.tasks.image_inputs import ImageInputs
    from expunge.tasks.table_inputs import TableInputs
    from expunge.tasks.text_inputs import TextInputs

    rest = {key: value for key, value in settings.items() if key != "kind"}
    if settings.get("kind") == TableInputs.name:
        return TableInputs.of(rest)
    if settings.get("kind") == TextInputs.name:
        return TextInputs.read(folder, **rest)
    return ImageInputs.of(rest)
