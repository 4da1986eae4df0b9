"""Amnesiac unlearning: go on training on all data, with wrong labels where it is to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from expunge.methods.base import MethodConfig, Run
from expunge.methods.general.random_label import RandomLabel, RandomLabelConfig
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples
from expunge.training.objective import Objective, Stream, Term, nll


class AmnesiacConfig(RandomLabelConfig):
    """Hyperparameters of amnesiac unlearning."""

    exclude_true_label: bool | None = Field(True, description="never draw the true label, as the paper says")


class Amnesiac(RandomLabel):
    """L = CE over the union of the retain set and the forget set with wrong labels, one average over both.

    An epoch is one pass over the union. This is what later papers compare with under the name. The original proposal
    subtracts the parameter updates of every training step that touched the forget set, which takes a record of the
    training that nobody has of a finished model.

    Source: Graves et al. 2021, arXiv 2010.10981; the relabelling form of the SSD authors' code.
    """

    id = "amnesiac"
    title = "go on training on all data, with wrong labels where it is to be forgotten"
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Graves et al. 2021, Amnesiac Machine Learning, arXiv:2010.10981"
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-4, "epochs": 3, "batch_size": 128, "weight_decay": 0.0
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = AmnesiacConfig

    def objective(self) -> Objective:
        """CE over the union, which stands in the place of the retain set."""
        return Objective((Term("union_nll", ("retain",), nll, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the union."""
        kept: Any = super().encode(stream, model, request, run)
        return kept + self.relabelled(model, request, run) if stream == "retain" else kept
