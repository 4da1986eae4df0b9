"""Weights at random: what every attribution has to beat."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Scope, Selection, SelectionConfig, top_share
from expunge.tasks.base import Task


class RandomConfig(SelectionConfig):
    """How many."""

    share: float = Field(0.5, gt=0, le=1, description="share of the weights that may move")
    scope: Scope = Field("global", description="choose among all weights together, or within each tensor")


class Random(Selection):
    """A uniformly random subset of the weights, drawn by the run's seed: the control of SalUn and WAGLE."""

    id = "random"
    title = "a random share of the weights, as a control"
    paper = "Fan et al. 2024, SalUn, arXiv:2310.12508 (its control)"
    Config: ClassVar[type[SelectionConfig]] = RandomConfig

    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Draw them."""
        generator = torch.Generator().manual_seed(seed)
        scores = {name: torch.rand(p.shape, generator=generator) for name, p in self.candidates(task).items()}
        return top_share(scores, self.config.share, self.config.scope)
