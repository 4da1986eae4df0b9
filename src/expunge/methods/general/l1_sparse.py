"""l1-sparse unlearning: fine-tune on the retain set while pulling every weight towards zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Penalty, Term, nll, shrink_towards


class L1SparseConfig(MethodConfig):
    """Hyperparameters of l1-sparse unlearning; defaults of the paper."""

    gamma: float = Field(5e-4, gt=0, description="weight of the l1 norm at the start")
    free_share: float = Field(
        0.0, ge=0, lt=1, description="last share of the run without the penalty; before, it falls linearly to zero"
    )
    constant: bool = Field(False, description="keep the weight of the penalty as it is throughout")
    parity: bool = Field(
        False, description="reproduce the reference: the weight of the penalty changes between epochs, not within one"
    )
    proximal: bool = Field(
        False, description="shrink weights after each step instead of adding to gradients: many end exactly at zero"
    )


class L1(Penalty):
    """``gamma(t) sum_j |theta_j|``: its gradient is ``gamma(t) sign(theta_j)``, 0 at 0.

    Args:
        config: says how gamma moves.
        epochs: of the run; only parity makes a difference.
    """

    name = "l1"

    def __init__(self, config: L1SparseConfig, epochs: int = 1):
        self.config, self.epochs = config, epochs

    def gamma(self, done: float) -> float:
        """Return the weight when a share ``done`` of the run lies behind."""
        if self.config.constant:
            return self.config.gamma
        if self.config.parity:
            done = math.floor(done * self.epochs + 1e-9) / self.epochs
        return self.config.gamma * max(0.0, 1 - done / (1 - self.config.free_share))

    @torch.no_grad()
    def add_gradient(self, weights: Mapping[str, Tensor], done: float) -> Tensor:
        """Add ``gamma sign(theta)`` to the gradients."""
        gamma = self.gamma(done)
        value = torch.zeros((), device=next(iter(weights.values())).device)
        for weight in weights.values():
            if not self.config.proximal:
                pull = gamma * weight.sign()
                weight.grad = pull if weight.grad is None else weight.grad + pull
            norm = weight.abs().sum()
            value = value + gamma * (norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        return value

    def after_step(self, weights: Mapping[str, Tensor], rate: float, done: float) -> None:
        """With ``proximal``: ``theta <- sign(theta) max(|theta| - rate gamma, 0)``."""
        if self.config.proximal:
            for weight in weights.values():
                shrink_towards(weight, 0.0, rate * self.gamma(done))


class L1Sparse(ObjectiveMethod):
    """L = CE(retain) + gamma_t ||theta||_1 over all weights, biases and norms included; summed, not averaged.

    gamma_t falls linearly from gamma to 0 over the run (or over its first ``1 - free_share``), in the authors' code
    from epoch to epoch (``parity=True``), here from step to step. With AdamW the pull of a
    weight that nothing else moves does not shrink with gamma; the authors use SGD. Weights become small, none exactly
    zero: the subgradient makes them oscillate around it. With ``proximal`` they are shrunk after each step instead, and
    those that nothing else holds end exactly at zero.

    Source: Jia et al. 2023, section 4.3; ``FT_l1`` of the authors' code.
    """

    id = "l1_sparse"
    title = "fine-tune on the retain set while pulling every weight towards zero"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv:2304.04934"
    train_defaults: ClassVar[Mapping[str, Any]] = {"weight_decay": 0.0}
    Config: ClassVar[type[MethodConfig]] = L1SparseConfig

    def objective(self) -> Objective:
        """CE(retain) and the penalty."""
        retain = Term("retain_nll", ("retain",), nll, "token_mean")
        return Objective((retain,), anchor="retain", penalty=L1(self.config))

    def objective_for(self, task: Task, request: DeletionRequest, run: Run) -> Objective:
        """The same, with a penalty that knows the number of epochs."""
        return replace(self.objective(), penalty=L1(self.config, run.train.epochs))

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)
