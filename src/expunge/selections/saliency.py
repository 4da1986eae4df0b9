"""Gradient saliency: the weights on which the loss of the forget set depends most."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Scope, Selection, SelectionConfig, top_share
from expunge.selections.importance import differentiable
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import EncodedExamples


class SaliencyConfig(SelectionConfig):
    """Settings of SalUn's mask; defaults of the paper."""

    share: float = Field(0.5, gt=0, le=1, description="share of the weights that may move")
    scope: Scope = Field("global", description="rank all weights together (the paper), or each tensor by itself")
    parity: bool = Field(
        False,
        description="reproduce the reference: a sum of batch means, so that a short last batch weighs more, and a "
        "number of weights that is rounded down",
    )
    parity_batch_size: PositiveInt = Field(256, description="batch size of parity")


def loss_gradient(
    task: Task,
    encoded: EncodedExamples,
    parameters: dict[str, Tensor],
    batches: list[list[int]],
    *,
    sum_of_means: bool = False,
) -> dict[str, Tensor]:
    """Return the gradient of the negative log-likelihood of examples, in evaluation mode.

    Args:
        task: the model; its gradients, mode and weights are left as they are.
        encoded: the examples.
        parameters: with respect to what, by name.
        batches: indices of the examples that go through the model together.
        sum_of_means: sum the mean losses of the batches, instead of taking the mean over all labelled rows.

    Returns:
        Name -> gradient in float32, of the parameter's shape; zero where the loss does not depend on it.
    """
    total = sum(encoded.labelled(i) for batch in batches for i in batch)
    summed = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    with differentiable(task, parameters), torch.enable_grad():
        for batch in batches:
            part = encoded.take(batch)
            rows = sum(part.labelled(i) for i in range(len(part)))
            loss = task.statistics(part).nll.sum() / (rows if sum_of_means else total)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    summed[name] += gradient
    return summed


class Saliency(Selection):
    """The ``share`` of the weights with the largest ``|d NLL(forget) / d theta|``, ranked over all of them.

    The gradient is that of the mean over all labelled tokens (examples, for a classifier) of the forget set; the
    absolute value is taken of the sum. The reference sums batch means instead (``parity=true``).

    Source: Fan et al. 2024, SalUn, section 4; the mask that its random labelling is confined to.
    """

    id = "saliency"
    title = "the weights that the loss of the forget set depends on most (SalUn)"
    paper = "Fan et al. 2024, SalUn, arXiv:2310.12508"
    Config: ClassVar[type[SelectionConfig]] = SaliencyConfig

    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Take the gradient and rank it."""
        config, encoded = self.config, task.encode(request.forget)
        if config.parity:
            size = config.parity_batch_size
            batches = [list(range(k, min(k + size, len(encoded)))) for k in range(0, len(encoded), size)]
        else:
            lengths = [encoded.length(i) for i in range(len(encoded))]
            batches = length_batches(lengths, task.tokens_per_forward)
        found = loss_gradient(task, encoded, self.candidates(task), batches, sum_of_means=config.parity)
        magnitudes = {name: g.abs() for name, g in found.items()}
        return top_share(magnitudes, config.share, config.scope, rounding="down" if config.parity else "chosen")
