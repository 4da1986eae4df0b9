"""The examples that the model is surest of: one forward pass instead of a search."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from expunge.forget_sets.base import Choice, ForgetSetConfig, ForgetSetSelector, Heard, Hold, SizedConfig, Units
from expunge.forget_sets.bilevel import unit_losses
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.kinds import CLASSIFIERS


class MarginConfig(SizedConfig):
    """How much, and from which end."""

    order: Literal["largest", "smallest"] = Field(
        "largest", description="take the largest margins (hard to forget), or the smallest (easy to forget)"
    )


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of the true class less the highest of the others, (N,).

    Args:
        logits: (N, C), C at least 2.
        targets: (N,) true classes.
    """
    true = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return true - others.max(1).values


class Margin(ForgetSetSelector):
    """The units with the largest margin under the model, which stay predicted after unlearning: a cheap worst case.

    What a model is surest of is what the others of the training set teach it as well. Classes are ranked by their mean.
    """

    id = "margin"
    title = "what the model is surest of (largest margin), or least sure of"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs_model = True
    paper = "the margin of Bartlett and Mendelson 2002; as a cheap stand-in for Fan et al. 2024, arXiv:2403.07362"
    Config: ClassVar[type[ForgetSetConfig]] = MarginConfig

    def choose(self, train: Dataset, units: Units, task: Task | None, seed: int, hold: Hold, heard: Heard) -> Choice:
        """Look once."""
        assert task is not None
        encoded = task.encode(train)
        found = torch.empty(len(encoded), dtype=torch.float64)
        was_training = task.model.training
        task.model.eval()
        batches = length_batches([encoded.length(i) for i in range(len(encoded))], task.tokens_per_forward)
        try:
            with torch.no_grad(), task.cost.measured():
                for done, batch in enumerate(batches, 1):
                    seen = task.statistics(encoded.take(batch))
                    found[batch] = margins(seen.logits, seen.targets).double().cpu()
                    heard(done, len(batches), {})
        finally:
            task.model.train(was_training)
        scores = unit_losses(found, torch.tensor(list(units.of)), len(units.names))
        return Choice((scores if self.config.order == "largest" else -scores).tolist())
