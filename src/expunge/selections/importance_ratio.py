"""Weights that matter much more to the forget set than to all data: those that SSD dampens."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveFloat

from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Selection, SelectionConfig
from expunge.selections.importance import squared_gradients
from expunge.tasks.base import Task


class ImportanceRatioConfig(SelectionConfig):
    """How much more."""

    threshold: PositiveFloat = Field(
        1.0, description="a weight may move if its importance to the forget set is more than so many times that to keep"
    )


class ImportanceRatio(Selection):
    """Weights with ``I(forget) > threshold I(retain)``, ``I`` the mean squared gradient of single examples.

    Source: Foster et al. 2024, SSD, section 3; there the second set is all data, which bounds the ratio by its size
    over that of the forget set.
    """

    id = "importance_ratio"
    title = "weights that matter more to the forget set than to what is kept (SSD)"
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Foster et al. 2024, Fast Machine Unlearning Without Retraining (SSD), arXiv:2308.07707"
    Config: ClassVar[type[SelectionConfig]] = ImportanceRatioConfig

    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Measure both importances and compare."""
        parameters = self.candidates(task)
        assert request.retain is not None
        forget = squared_gradients(task, task.encode(request.forget), parameters)
        retain = squared_gradients(task, task.encode(request.retain), parameters)
        return {name: forget[name] > self.config.threshold * retain[name] for name in parameters}
