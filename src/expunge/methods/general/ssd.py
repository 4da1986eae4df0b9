"""Selective synaptic dampening: shrink the weights that matter much more to the forget set than to all data."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import EditingMethod, MethodConfig, Run
from expunge.requests.request import DeletionRequest
from expunge.selections.importance import squared_gradients
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS

PUBLISHED_ALPHA = 10.0


class SSDConfig(MethodConfig):
    """Hyperparameters of SSD; defaults of the authors' ResNet runs on CIFAR."""

    alpha: PositiveFloat | None = Field(
        None,
        description="dampen weights more than so many times as important to the forget set as to all data; by default "
        "10, or half of what can be exceeded at all (all examples over those to forget) where that is less",
    )
    strength: PositiveFloat = Field(1.0, description="lambda: scale of the dampening factor")
    importance_of: Literal["all", "retain"] = Field(
        "all", description="what the forget set is compared with: all data (the paper), or what is kept"
    )
    parity: bool = Field(
        False, description="reproduce the reference: squared mean gradients of batches, which depend on the batch size"
    )
    parity_batch_size: PositiveInt = Field(64, description="batch size of parity, for both sets")


def dampen(weight: Tensor, forget: Tensor, everything: Tensor, alpha: float, strength: float) -> Tensor:
    """Return the dampened weight.

    ``theta min(1, strength I_D / I_f)`` where ``I_f > alpha I_D``, elsewhere ``theta`` bitwise.

    Args:
        weight: any shape.
        forget: importance to the forget set, of the same shape.
        everything: importance to all data.
        alpha, strength: see ``SSDConfig``.
    """
    chosen = forget > alpha * everything
    factor = (strength * everything / forget.where(chosen, torch.ones_like(forget))).clamp(max=1.0)
    return torch.where(chosen, weight * factor.to(weight.dtype), weight)


class SSD(EditingMethod):
    """theta_j <- theta_j min(1, lambda I_D,j / I_f,j) wherever I_f,j > alpha I_D,j; nothing is trained.

    ``I_S,j = 1/|S| sum_{x in S} (d loss(x) / d theta_j)^2`` in evaluation mode. As ``D`` holds the forget set, the
    ratio cannot exceed |D| / |D_f|; an ``alpha`` beyond that is refused, for it changes nothing.

    The reference squares the mean gradient of each batch instead (``parity=True``): its importance falls with the
    batch size, and so does what alpha means.

    Source: Foster, Schoepf and Brintrup 2024, section 3; the code of its authors.
    """

    id = "ssd"
    title = "shrink the weights that matter most to the forget set; no training"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Foster et al. 2024, Fast Machine Unlearning Without Retraining (SSD), arXiv:2308.07707"
    Config: ClassVar[type[MethodConfig]] = SSDConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also an alpha that no weight can exceed.

        Raises:
            BadInput: see ``Method.check``; or such an alpha.
        """
        super().check(task, request)
        bound = self._bound(request)
        if bound is not None and self.config.alpha is not None and self.config.alpha >= bound:
            what = f"is {self.config.alpha:g}, and no weight can be more than {bound:g} times as important"
            fix = "give less: the bound is the number of all examples over that of the forget set"
            raise BadInput(Problem("alpha", what, fix))

    def _bound(self, request: DeletionRequest) -> float | None:
        assert request.retain is not None
        if self.config.importance_of == "retain" or self.config.parity:
            return None
        return (len(request.forget) + len(request.retain)) / len(request.forget)

    def edit(self, model: Task, request: DeletionRequest, run: Run) -> dict[str, Any]:
        """Measure the importances and dampen."""
        config, bound, alpha = self.config, self._bound(request), self.config.alpha
        if alpha is None:
            alpha = PUBLISHED_ALPHA if bound is None else min(PUBLISHED_ALPHA, bound / 2)
        parameters = dict(model.named_parameters())
        how: dict[str, Any] = {"kind": "batch", "batch_size": config.parity_batch_size} if config.parity else {}
        forget_set, retain_set = model.encode(request.forget), model.encode(request.retain)
        forget = squared_gradients(model, forget_set, parameters, **how)
        other = retain_set if config.importance_of == "retain" else retain_set + forget_set
        everything = squared_gradients(model, other, parameters, **how)
        changed = 0
        with torch.no_grad():
            for name, weight in parameters.items():
                new = dampen(weight, forget[name], everything[name], alpha, config.strength)
                changed += int((new != weight).sum())
                weight.copy_(new)
        return {"alpha": alpha, "weights_dampened": changed, "weights": sum(p.numel() for p in parameters.values())}
