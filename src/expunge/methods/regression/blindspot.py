"""Blindspot: learn from a model that was briefly trained without the forget set, where it is to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.methods.regression.gaussian_finetune import absolute_error
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.statistics import RegressionStatistics, Statistics
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.plan import draw
from expunge.training.settings import TrainSettings


class BlindspotConfig(MethodConfig):
    """Hyperparameters of Blindspot; defaults of the authors' AgeDB run."""

    proxy_epochs: PositiveInt = Field(2, description="passes over the retain set that make the proxy; 10 on STS-B")
    proxy_learning_rate: PositiveFloat = Field(1e-2, description="learning rate of the proxy")
    absolute: bool = Field(True, description="mean absolute error, as on AgeDB; squared error otherwise")


def towards(statistics: Statistics, target: Tensor, absolute: bool) -> Tensor:
    """(B,) mean absolute or squared distance of the outputs from targets (B, D).

    Raises:
        ValueError: shapes differ, which broadcasting would hide.
    """
    if statistics.logits.shape != target.shape:
        raise ValueError(f"outputs {tuple(statistics.logits.shape)} and targets {tuple(target.shape)} differ in shape")
    distance = statistics.logits - target.detach()
    return (distance.abs() if absolute else distance.square()).mean(-1)


class Blindspot(ObjectiveMethod):
    """L = c mean_forget |f(x) - b(x)| + (1 - c) mean_retain |f(x) - y|, c the share of the forget set in a step (1/2).

    b, the proxy, has fresh weights trained for ``proxy_epochs`` on the retain set alone; how good it is decides
    everything, and its loss is in the outcome's ``config["proxy"]``. Every example to forget meets one retain example
    per step, so c is a half; the authors draw mixed batches.

    The authors add 50 times a distance of normalised activations. Their normalisation averages over the channels, which
    for a layer of single numbers leaves a constant, and activations have no name in a model at large: it is left out.

    Source: Tarun et al. 2023, Deep Regression Unlearning (arXiv 2210.08196), section 4.1.
    """

    id = "blindspot"
    title = "learn from a proxy that never saw the forget set, where it is to be forgotten"
    tasks: ClassVar[tuple[str, ...]] = ("regressor",)
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Tarun et al. 2023, Deep Regression Unlearning, arXiv:2210.08196"
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3, "epochs": 1, "batch_size": 128, "weight_decay": 0.0
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = BlindspotConfig

    def objective(self) -> Objective:
        """Both halves; the proxy is only known with the data."""
        return self._terms(None)

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def objective_for(self, task: Task, request: DeletionRequest, run: Run) -> Objective:
        """Both halves, with a proxy that is trained here."""
        config = self.config
        proxy = task.fresh(draw(run.train.seed, "proxy") % 2**31)
        retain = proxy.encode(request.retain)
        settings = TrainSettings(
            epochs=config.proxy_epochs, learning_rate=config.proxy_learning_rate, batch_size=run.train.batch_size,
            weight_decay=0.0, warmup=0.0, schedule="constant", seed=run.train.seed,
        )  # fmt: skip
        fit = Objective((Term("retain_error", ("retain",), self._error(), "token_mean"),), anchor="retain")
        result = train(proxy, fit, {"retain": retain}, settings, progress=run.progress)
        with torch.no_grad():
            known = proxy.statistics(retain)
        assert isinstance(known, RegressionStatistics)
        run.elsewhere += proxy.cost
        run.notes["proxy"] = {"steps": result.steps, "retain_error": float(self._error()(known).mean())}
        return self._terms(proxy)

    def _error(self) -> Any:
        return absolute_error if self.config.absolute else nll

    def _terms(self, proxy: Task | None) -> Objective:
        def forget(stats: Statistics) -> Tensor:
            assert stats.teacher_logits is not None
            return towards(stats, stats.teacher_logits(slice(None)), self.config.absolute)

        return Objective(
            (
                Term("proxy", ("forget",), forget, "token_mean", 0.5, reference="teacher"),
                Term("retain_error", ("retain",), self._error(), "token_mean", 0.5),
            ),
            teacher=proxy,
        )
