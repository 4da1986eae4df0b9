"""Gaussian amnesiac: go on training on all data, with targets drawn at random where it is to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples, LabelledExamples
from expunge.tasks.statistics import RegressionStatistics, Statistics
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.plan import ALTERNATIVE, draw


class GaussianFinetuneConfig(MethodConfig):
    """Hyperparameters of Gaussian amnesiac fine-tuning; defaults of the authors' AgeDB run."""

    absolute: bool = Field(True, description="mean absolute error, as on AgeDB; the model's squared error otherwise")
    target_seed: int = Field(0, ge=0, description="seed of the targets that are drawn; the example id is the rest")


def gaussian_targets(encoded: LabelledExamples, mean: Tensor, deviation: Tensor, seed: int) -> LabelledExamples:
    """Give examples targets from N(mean, deviation^2), each by (seed, id) alone.

    Args:
        encoded: N examples.
        mean, deviation: (D,) of the targets of all data.
        seed: of the draw.

    Returns:
        The same inputs with ids ``<example id>#0``.
    """
    shape = encoded.targets.shape[1:]
    noise = [np.random.default_rng(draw(seed, "target", i)).standard_normal(shape) for i in encoded.ids]
    drawn = mean + deviation * torch.from_numpy(np.stack(noise)).float()
    renamed = [f"{identity}{ALTERNATIVE}0" for identity in encoded.ids]
    return LabelledExamples(renamed, encoded.inputs, drawn)


def absolute_error(statistics: Statistics) -> Tensor:
    """(B,) mean absolute error of the numbers of each example."""
    assert isinstance(statistics, RegressionStatistics)
    return (statistics.logits - statistics.targets).abs().mean(-1)


class GaussianFinetune(ObjectiveMethod):
    """L = mean |f(x) - y| over the union of the retain set and the forget set with y ~ N(mean, sd^2) of all targets.

    Each target is drawn once. Mean and standard deviation (with ddof 1) are those of forget and retain set together. An
    epoch is one pass over the union.

    Source: Tarun et al. 2023, Deep Regression Unlearning (arXiv 2210.08196), section 4.2.
    """

    id = "gaussian_finetune"
    title = "go on training on all data, with random targets where it is to be forgotten"
    tasks: ClassVar[tuple[str, ...]] = ("regressor",)
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Tarun et al. 2023, Deep Regression Unlearning, arXiv:2210.08196"
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3, "epochs": 1, "batch_size": 256, "weight_decay": 0.0
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = GaussianFinetuneConfig

    def objective(self) -> Objective:
        """The error over the union, which stands in the place of the retain set."""
        values = absolute_error if self.config.absolute else nll
        return Objective((Term("union_error", ("retain",), values, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the union."""
        kept: Any = super().encode(stream, model, request, run)
        if stream != "retain":
            return kept
        gone: Any = model.encode(request.forget)
        everything = torch.cat([kept.targets, gone.targets])
        mean, deviation = everything.mean(0), everything.std(0, unbiased=True)
        run.notes["targets"] = {"mean": mean.tolist(), "deviation": deviation.tolist()}
        return kept + gaussian_targets(gone, mean, deviation, self.config.target_seed)
