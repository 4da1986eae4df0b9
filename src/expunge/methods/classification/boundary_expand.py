"""Boundary expanding: give the examples to forget a class of their own, and take that class away."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from expunge.errors import BadInput, Problem
from expunge.methods.base import ObjectiveMethod, Run, Unlearned
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples, LabelledExamples
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.outcomes import Classes
from expunge.tasks.predictor import Predictor
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.plan import draw

SHADOW = "expunge: nobody's class"


def widened(head: nn.Linear, seed: int) -> nn.Linear:
    """Return a linear layer with one more output: the old ones as they were, the new one with fresh small weights.

    Args:
        head: (C, H).
        seed: of the new row.
    """
    new = nn.Linear(head.in_features, head.out_features + 1, bias=head.bias is not None, dtype=head.weight.dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        new.weight[:-1] = head.weight.cpu()
        new.weight[-1] = torch.randn(head.in_features, generator=generator) * head.in_features**-0.5
        if head.bias is not None:
            new.bias[:-1] = head.bias.cpu()
            new.bias[-1] = 0.0
    return new.to(head.weight.device)


def narrowed(head: nn.Linear) -> nn.Linear:
    """Return the same layer without its last output."""
    like = {"device": head.weight.device, "dtype": head.weight.dtype}
    new = nn.Linear(head.in_features, head.out_features - 1, bias=head.bias is not None, **like)
    with torch.no_grad():
        new.weight.copy_(head.weight[:-1])
        if head.bias is not None:
            new.bias.copy_(head.bias[:-1])
    return new


class BoundaryExpand(ObjectiveMethod):
    """L = CE(f(x), C) on the forget set alone, f with one output more than the C classes; then that output is removed.

    The authors' code leaves the extra output in place when it measures, so that an example sent there counts as
    wrong by construction; here it is taken away, and the class that is most probable without it counts.

    Source: Chen et al. 2023, Boundary Unlearning (arXiv 2303.11570), section 4.3.
    """

    id = "boundary_expand"
    title = "send what is to be forgotten to a new class, and take that class away"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    paper = "Chen et al. 2023, Boundary Unlearning, arXiv:2303.11570"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "weight_decay": 0.0}

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also a model without a single linear head.

        Raises:
            BadInput: every problem.
        """
        super().check(task, request)
        # One that is only described, and not loaded yet, has no head to look at.
        if isinstance(task, Predictor) and not isinstance(task.head_module(), nn.Linear):
            what = "needs a linear head that can be given one more output, and the model has none"
            raise BadInput(Problem(f"method {self.id}", what, "use boundary_shrink"))

    def objective(self) -> Objective:
        """CE towards the class that is nobody's."""
        return Objective((Term("shadow_nll", ("forget",), nll, "token_mean"),))

    def start(self, task: Task, run: Run) -> Task:
        """Return a copy with one more output."""
        model = task.copy()
        assert isinstance(model, Predictor)
        assert isinstance(model.outcome, Classes)
        head = model.head_module()
        assert isinstance(head, nn.Linear)
        return _with_head(model, widened(head, draw(run.train.seed, "shadow") % 2**31), (*model.outcome.names, SHADOW))

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the forget set, all of it in the class that is nobody's."""
        encoded = super().encode(stream, model, request, run)
        assert isinstance(encoded, LabelledExamples)
        assert model.outcomes is not None
        return encoded.with_targets(torch.full_like(encoded.targets, model.outcomes - 1))

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Train a copy with one more output, and take that output away."""
        outcome = super().apply(task, request, run)
        model = outcome.model
        assert isinstance(model, Predictor)
        assert isinstance(task, Predictor)
        assert isinstance(task.outcome, Classes)
        head = model.head_module()
        assert isinstance(head, nn.Linear)
        outcome.model = _with_head(model, narrowed(head), task.outcome.names)
        outcome.model.model.eval()
        return outcome


def _with_head(model: Predictor, head: nn.Linear, names: tuple[str, ...]) -> Predictor:
    """Put another head into a model, and tell everything that knows the number of classes."""
    module = model.model
    place = next(name for name, part in module.named_modules() if part is model.head_module())
    parent, _, last = place.rpartition(".")
    setattr(module.get_submodule(parent) if parent else module, last, head)
    if (config := getattr(module, "config", None)) is not None:
        config = copy.deepcopy(config)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        module.config = config
        if hasattr(module, "num_labels"):
            module.num_labels = len(names)
    other = Predictor(module, model.inputs, Classes(names), factory=model.factory, source=model.source)
    other.cost = model.cost
    return other
