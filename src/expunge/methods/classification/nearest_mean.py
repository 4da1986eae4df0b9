"""Nearest class mean: a head that is nothing but sums over examples, from which any of them can be taken out."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import EditingMethod, MethodConfig, RemovalLevel, Run, Unlearned
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.predictor import Predictor

# How far below another class one of which no example is left scores: finite, and more than a probability shows.
BELOW = 1e4


class NearestMeanConfig(MethodConfig):
    """Hyperparameters of the nearest-mean head."""

    metric: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="distance to the class means: of the features, or of their directions"
    )
    clean_features: bool = Field(
        False,
        description="say that the features were learned without the forget set, so that deletion is exact",
    )


class ClassMeans:
    """Sums, counts and squared lengths of features per class, in float64, so that deletion is exact to rounding.

    Args:
        classes: C.
        width: H.
    """

    def __init__(self, classes: int, width: int):
        self.sums = torch.zeros(classes, width, dtype=torch.float64)
        self.counts = torch.zeros(classes, dtype=torch.int64)
        self.squares = torch.zeros(classes, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor, sign: int = 1) -> None:
        """Take examples in, or out with ``sign=-1``.

        Args:
            features: (B, H).
            labels: (B,) int64.
            sign: 1 or -1.
        """
        wide, labels = features.detach().double().cpu(), labels.cpu()
        self.sums.index_add_(0, labels, wide, alpha=sign)
        self.counts += sign * torch.bincount(labels, minlength=len(self.counts))
        self.squares.index_add_(0, labels, wide.square().sum(-1), alpha=sign)

    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Take examples out."""
        self.add(features, labels, -1)

    @property
    def means(self) -> Tensor:
        """(C, H) class means; zero for a class without examples."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    @property
    def variance(self) -> float:
        """Pooled variance within the classes, per dimension."""
        within = float((self.squares - self.counts * self.means.square().sum(-1)).sum())
        return max(within, 1e-12) / (max(1, int(self.counts.sum())) * self.sums.shape[1])

    def head(self, metric: str) -> tuple[Tensor, Tensor]:
        """Return (C, H) weights and (C,) biases of the linear layer that scores classes by their means.

        With mu the means and s the pooled variance: ``mu / s`` and ``-|mu|^2 / (2 s)``, the log-densities of
        spherical Gaussians up to what all classes share, so the nearest mean has the highest score. For "cosine" the
        means have unit length and the biases are 0: the nearest direction has. A class without examples scores
        ``BELOW`` less than another one, whatever the input: a score of its own may be the highest for an input that is
        far from all means.
        """
        mu, scale = self.means, 1 / self.variance
        if metric == "cosine":
            mu = mu / mu.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            bias = torch.zeros(len(mu), dtype=torch.float64)
        else:
            bias = -mu.square().sum(-1) * scale / 2
        weight, left = mu * scale, self.counts > 0
        if left.any():
            other = int(left.nonzero()[0])
            weight = torch.where(left[:, None], weight, weight[other])
            bias = torch.where(left, bias, bias[other] - max(BELOW, 1e-3 * float(bias[other].abs())))
        return weight, bias


def features_of(task: Predictor, encoded: Any) -> tuple[Tensor, Tensor]:
    """Return (N, H) head inputs and (N,) labels, in evaluation mode, in the order of the examples."""
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        lengths = [encoded.length(i) for i in range(len(encoded))]
        for batch in length_batches(lengths, task.tokens_per_forward):
            hidden = task.statistics(encoded.take(batch), hidden=True).hidden
            if hidden is None:
                what = "has no single linear layer whose input could be read"
                raise BadInput(Problem(f"the {task.kind}", what, "give a model with a linear head"))
            found |= dict(zip(batch, hidden, strict=True))
    return torch.stack([found[i] for i in range(len(encoded))]), encoded.targets


class NearestMean(EditingMethod):
    """f(x) = argmin_c d(h(x), mu_c), mu_c the mean of h over the examples of class c that are kept; h stays frozen.

    The head holds sums and counts alone. It is built on all data, and then the forget set is subtracted: to rounding in
    float64, what is left is what would have been built without it. That is exact for the head; what the features
    learned of the forget set stays in them, so the level is approximate unless ``clean_features`` says that they never
    saw it.

    ``metric=euclidean`` compares features, ``cosine`` their directions with those of the means. The published
    code compares unit-length features with means that it does not normalise again, which no linear layer can do.

    Source: Janson et al. 2022; nearest class means of frozen features.
    """

    id = "nearest_mean"
    title = "put class means of frozen features in the head's place, less the forget set"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Janson et al. 2022, A Simple Baseline that Questions the Use of Pretrained Models in Continual Learning"
    Config: ClassVar[type[MethodConfig]] = NearestMeanConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also a head without a bias, which the means need.

        Raises:
            BadInput: every problem.
        """
        super().check(task, request)
        if not isinstance(task, Predictor):
            return  # described, and not loaded yet
        head = task.head_module()
        if head is None or getattr(head, "bias", None) is None:
            what = "needs a linear head with a bias, and the model has none"
            raise BadInput(Problem(f"method {self.id}", what, "use another method"))

    def edit(self, model: Task, request: DeletionRequest, run: Run) -> dict[str, Any]:
        """Sum over all data, take the forget set out, write the head."""
        assert isinstance(model, Predictor)
        assert request.retain is not None
        forget, retain = (features_of(model, model.encode(s)) for s in (request.forget, request.retain))
        built = ClassMeans(model.outcome.width, forget[0].shape[1])
        built.add(*retain)
        built.add(*forget)
        built.remove(*forget)
        weight, bias = built.head(self.config.metric)
        head: Any = model.head_module()
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        return {"examples_per_class": built.counts.tolist()}

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Edit a copy of the model; the level is exact where the features never saw the forget set."""
        outcome = super().apply(task, request, run)
        level: RemovalLevel = "exact" if self.config.clean_features else self.removal_level
        outcome.removal_level = level
        return outcome
