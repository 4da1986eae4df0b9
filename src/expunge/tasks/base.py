"""The contract of a task: the one place that knows a kind of model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.tasks.cost import Cost
from expunge.tasks.examples import EncodedExamples, Positions
from expunge.tasks.statistics import Statistics

# What a further forward and backward costs on a CPU beside its tokens: so many floating-point operations.
CALL_FLOPS = 5e8


class Task(ABC):
    """A model together with what is needed to train, ask and save it.

    General methods and audits talk to this and to nothing below it.

    Class attributes:
        id: name of the class, written beside the weights; ``expunge.tasks.loading`` finds the class by it.

    Attributes:
        kind: what methods and audits say they serve, such as "causal_lm".
        loss, unit: what ``Statistics.mean_nll`` is, in words for messages and reports.
        small_blocks: whether block outputs are small enough to be remembered for every example.
        model: the module that is trained and saved.
        cost: the account of what was spent on it.
        source: where it came from, for reports.
    """

    id: ClassVar[str]
    kind: str
    loss: str = "answer NLL"
    unit: str = "nats per token"
    small_blocks: bool = True
    model: Any
    cost: Cost
    source: str

    @classmethod
    def recognises(cls, path: str | Path, config: Mapping[str, Any]) -> bool:
        """Say whether a folder or hub name that no run of ours wrote is a model of this class.

        Args:
            path: the folder or name; only names and small files in it may be read.
            config: its ``config.json``; empty where there is none.
        """
        return False

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, *args: Any, **loading: Any) -> Task:
        """Load a model; each class names its own options, among them ``dtype`` and ``device``."""

    @classmethod
    def check_fit(cls, path: str | Path) -> None:
        """Refuse a folder whose weights are not those that its configuration describes, without reading them.

        A class that cannot tell leaves it to ``load``.

        Raises:
            BadInput: weights that are missing or of another shape.
        """
        return

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def base(self) -> Task:
        """The model inside what surrounds it, such as a guard; itself where nothing does."""
        return self

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the names and weights of the model."""
        yield from self.model.named_parameters()

    @abstractmethod
    def encode(self, examples: Dataset) -> EncodedExamples:
        """Turn examples into model inputs, once."""

    @abstractmethod
    def statistics(
        self,
        encoded: Any,
        *,
        positions: Positions = "answer",
        forward: nn.Module | None = None,
        hidden: bool = False,
        blocks: Sequence[int] = (),
        logits: bool = True,
        rows_only: bool = False,
    ) -> Statistics:
        """Run one forward pass over a batch and return what objectives are formulas over; gradients flow.

        Args:
            encoded: the batch.
            positions: which rows are read.
            forward: what to call instead of the model: the same model wrapped for several processes.
            hidden: also return the rows of the head's input.
            blocks: also return the outputs of these blocks, or of these nonlinearities where there is no stack of
                blocks.
            logits: False where only block outputs are read, so that nothing above them need be run.
            rows_only: nobody looks at the forward pass but through what is returned: whatever other positions alone
                depend on need not be run.
        """

    @abstractmethod
    def head(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Map rows of the head's input to logits with the given head weights."""

    @property
    @abstractmethod
    def tokens_per_forward(self) -> int:
        """How much a forward pass without gradients may take, so that memory stays bounded.

        In the unit of ``EncodedExamples.length``: padded tokens, or examples where all are of one size.
        """

    @property
    def tokens_per_call(self) -> int | None:
        """What a further call of the model costs on a CPU beside its examples, in the unit of their lengths.

        None on a GPU, where a longer call costs less than a further one.
        """
        if self.device.type != "cpu":
            return None
        weights = sum(p.numel() for _, p in self.named_parameters())
        return max(8, round(CALL_FLOPS / (6 * max(1, weights))))

    @property
    @abstractmethod
    def outcomes(self) -> int | None:
        """How many values a row's target can take: tokens of the vocabulary, or classes; None for numbers."""

    @property
    def mixes_examples(self) -> bool:
        """Whether what training does with one example depends on the others of its batch (batch normalisation)."""
        return False

    @property
    def varies(self) -> bool:
        """Whether training sees examples that are changed at random (augmentation)."""
        return False

    def varied(self, encoded: Any, seed: int) -> Any:
        """Return examples as training sees them, a function of (seed, id); statistics never see them so."""
        return encoded

    @abstractmethod
    def head_module(self) -> nn.Module | None:
        """Return the output head, the last linear layer; None where none is."""

    def head_weights(self) -> dict[str, Tensor]:
        """Return a detached copy of the output head's weights; empty where there is no head."""
        head = self.head_module()
        return {} if head is None else {name: value.detach().clone() for name, value in head.named_parameters()}

    def head_parameters(self) -> dict[str, Tensor]:
        """Return the output head's weights themselves, by their names in the whole model."""
        head = self.head_module()
        own = set() if head is None else {id(p) for p in head.parameters()}
        return {name: p for name, p in self.named_parameters() if id(p) in own}

    @abstractmethod
    def fresh(self, seed: int) -> Task:
        """Return the same architecture with new random weights that depend on the seed alone."""

    def refit(self, examples: Dataset) -> None:  # noqa: B027 - few kinds know anything of data beside their weights
        """Take what is known of data beside the weights, such as the scales of a table's columns, from these alone."""

    @abstractmethod
    def load_like(self, path: str | Path) -> Task:
        """Load another checkpoint to be used as this one is."""

    @abstractmethod
    def copy(self) -> Task:
        """Return an independent copy; changing one never changes the other."""

    @abstractmethod
    def save(self, folder: Path, metadata: dict[str, Any] | None = None) -> None:
        """Write the model so that the library it came from loads it; atomic."""

    @abstractmethod
    def wrap_lora(self, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str) -> None:
        """Freeze the weights and add low-rank adapters to train instead."""

    @abstractmethod
    def merge_lora(self) -> None:
        """Fold the adapters into the weights and drop them."""
