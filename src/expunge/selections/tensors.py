"""Whole parameters by name, or those of the last layers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Selection, SelectionConfig
from expunge.tasks.base import Task


class TensorsConfig(SelectionConfig):
    """Which parameters."""

    last: int = Field(0, ge=0, description="only so many of the last of them, in the model's order; 0 for all")


class Tensors(Selection):
    """Every weight of the parameters whose name matches ``parameters``; nothing else moves.

    With ``last``, the CF-k of Goel et al. 2022: only the end of the model is trained.
    """

    id = "tensors"
    title = "whole parameters, by name or from the end of the model"
    paper = "Goel et al. 2022, Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv:2201.06640"
    Config: ClassVar[type[SelectionConfig]] = TensorsConfig

    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Name them."""
        return dict.fromkeys(list(self.candidates(task))[-self.config.last :])
