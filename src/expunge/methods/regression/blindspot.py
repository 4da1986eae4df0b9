"""Blindspot: learn from a model that was briefly trained without the forget set, where it is to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.methods.regression.gaussian_finetune import absolute_error
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.predictor import Predictor
from expunge.tasks.statistics import Statistics
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.plan import draw
from expunge.training.settings import TrainSettings


class BlindspotConfig(MethodConfig):
    """Hyperparameters of Blindspot; defaults of the authors' AgeDB run."""

    proxy_epochs: PositiveInt = Field(2, description="passes over the retain set that make the proxy; 10 on STS-B")
    proxy_learning_rate: PositiveFloat = Field(1e-2, description="learning rate of the proxy")
    absolute: bool = Field(True, description="mean absolute error, as on AgeDB; squared error otherwise")
    beta: NonNegativeFloat = Field(50.0, description="weight of the distance of attention maps; 0 for none")
    parity: bool = Field(
        False, description="reproduce the reference: maps are means over the second dimension, time in a text"
    )


def towards(statistics: Statistics, target: Tensor, absolute: bool) -> Tensor:
    """(B,) mean absolute or squared distance of the outputs from targets (B, D).

    Raises:
        ValueError: shapes differ, which broadcasting would hide.
    """
    if statistics.logits.shape != target.shape:
        raise ValueError(f"outputs {tuple(statistics.logits.shape)} and targets {tuple(target.shape)} differ in shape")
    distance = statistics.logits - target.detach()
    return (distance.abs() if absolute else distance.square()).mean(-1)


def attention_map(activations: Tensor, *, second: bool = False) -> Tensor:
    """(B, P) where a layer is active: the mean over channels of the squares at each of P positions, of length 1.

    Args:
        activations: (B, C, H, W) of images, or (B, T, C) of sequences.
        second: average over the second dimension whatever it is, as the reference does.
    """
    channels = -1 if activations.dim() == 3 and not second else 1
    return F.normalize(activations.square().mean(channels).flatten(1))


def attention_distance(own: Mapping[int, Tensor], others: Mapping[int, Tensor], *, second: bool = False) -> Tensor:
    """(B,) squared distance of the attention maps of two models, averaged over positions, summed over layers.

    Args:
        own, others: activations per layer, see ``attention_map``; no gradient reaches the others.
        second: as there.
    """
    maps = ((attention_map(a, second=second), attention_map(others[k].detach(), second=second)) for k, a in own.items())
    return torch.stack([(a - b).square().mean(-1) for a, b in maps]).sum(0)


class Blindspot(ObjectiveMethod):
    """L = c (mean_forget |f(x) - b(x)| + beta mean_forget AT) + (1 - c) mean_retain |f(x) - y|, c = 1/2.

    b, the proxy, has fresh weights trained for ``proxy_epochs`` on the retain set alone; how good it is decides
    everything, and its loss is in the outcome's ``config["proxy"]``. Every example to forget meets one retain example
    per step, so c, the share of the forget set, is a half; the authors draw mixed batches.

    AT is the distance of attention maps of f and b, summed over the nonlinearities of the model, see
    ``attention_distance``. A layer without positions has a map of one number, which is constant: such layers, and
    nonlinearities that are no modules, add nothing, and how many do is in ``config["attention_layers"]``. For texts the
    reference averages over time instead of channels (``parity=True``).

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
        lengths = [retain.length(i) for i in range(len(retain))]
        with torch.no_grad():
            errors = torch.cat(
                [self._error()(proxy.statistics(retain.take(batch)))
                 for batch in length_batches(lengths, proxy.tokens_per_forward)]
            )  # fmt: skip
        run.elsewhere += proxy.cost
        layers = self._layers(task, request) if config.beta else ()
        run.notes["attention_layers"] = len(layers)
        run.notes["proxy"] = {"steps": result.steps, "retain_error": float(errors.mean())}
        return self._terms(proxy, layers)

    def _layers(self, task: Task, request: DeletionRequest) -> tuple[int, ...]:
        """Nonlinearities whose outputs have positions."""
        assert isinstance(task, Predictor)
        some = task.encode(request.forget.select(range(min(2, len(request.forget)))))
        shapes = task.nonlinearities(some)
        return tuple(k for k, shape in enumerate(shapes) if len(shape) in (3, 4) and shape[0] == len(some))

    def _error(self) -> Any:
        return absolute_error if self.config.absolute else nll

    def _terms(self, proxy: Task | None, layers: tuple[int, ...] = ()) -> Objective:
        def forget(stats: Statistics) -> Tensor:
            assert stats.teacher_logits is not None
            return towards(stats, stats.teacher_logits(slice(None)), self.config.absolute)

        def apart(stats: Statistics) -> Tensor:
            return attention_distance(stats.blocks, stats.teacher_blocks, second=self.config.parity)

        terms = [
            Term("proxy", ("forget",), forget, "token_mean", 0.5, reference="teacher"),
            Term("retain_error", ("retain",), self._error(), "token_mean", 0.5),
        ]
        if layers:
            weight = 0.5 * self.config.beta
            terms.append(
                Term("attention", ("forget",), apart, "example_mean", weight, reference="teacher", blocks=layers)
            )
        return Objective(tuple(terms), teacher=proxy)
