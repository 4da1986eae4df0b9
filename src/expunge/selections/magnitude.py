"""The weights that pruning keeps: the largest (at once or in rounds), or those on the strongest paths (SynFlow)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import BadInput, Problem
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Scope, Selection, SelectionConfig, top_share, zero_outside
from expunge.tasks.base import Task
from expunge.tasks.predictor import Predictor
from expunge.tasks.text_inputs import TextInputs

Rule = Literal["omp", "imp", "synflow"]
PER_ROUND = 0.2  # of the weights that are left, what one round of iterative pruning takes


class MagnitudeConfig(SelectionConfig):
    """How weights are pruned; defaults of Jia et al."""

    rule: Rule = Field(
        "omp",
        description="omp: the largest weights, in one shot; imp: the same in rounds of 20 %, with training of what is "
        "left after each; synflow: the weights on the strongest paths from input to output, whatever the data",
    )
    share: float = Field(0.05, gt=0, le=1, description="share of the prunable weights that are kept")
    scope: Scope = Field("global", description="rank all prunable weights together, or each tensor by itself")
    prunable: Literal["matrices", "filters", "all"] = Field(
        "matrices",
        description="what is ranked: matrices and filters but the head's; filters of convolutions alone (the authors); "
        "or all weights. What is not ranked is kept whole",
    )
    synflow_rounds: PositiveInt = Field(100, description="rounds of synflow")
    imp_epochs: PositiveInt = Field(1, description="passes over forget and retain set after each round of imp")
    imp_learning_rate: PositiveFloat = Field(1e-3, description="learning rate of these passes (Adam)")
    imp_batch_size: PositiveInt = Field(64, description="batch size of these passes")


def prunable(task: Task, what: str = "matrices") -> dict[str, Tensor]:
    """Return the weights that pruning ranks, by name: see ``MagnitudeConfig.prunable``."""
    named = dict(task.named_parameters())
    if what == "all":
        return named
    kinds: tuple[type, ...] = (nn.modules.conv._ConvNd,)
    kinds += () if what == "filters" else (nn.Linear, Conv1D)
    head = {id(p) for p in task.head_parameters().values()}
    modules: list[Any] = [module for module in task.model.modules() if isinstance(module, kinds)]
    found = {id(module.weight) for module in modules} - head
    return {name: p for name, p in named.items() if id(p) in found}


def omp_mask(weights: Mapping[str, Tensor], share: float, scope: Scope = "global") -> dict[str, Tensor]:
    """Return the mask of the largest weights by absolute value; what is rounded is the number of those it prunes."""
    return top_share({name: p.detach().abs() for name, p in weights.items()}, share, scope, rounding="left_out")


def synflow_scores(task: Predictor, like: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return ``|w dR/dw|``, R the summed outputs of a model for an input of ones.

    Args:
        task: a model in double precision in evaluation mode, with ``|w|`` in the place of every weight and buffer.
        like: a batch of one, for its shape.
        names: parameters whose scores are wanted.
    """
    parameters = dict(task.named_parameters())
    chosen = [parameters[name] for name in names]
    with torch.enable_grad():
        outputs = task.predict({key: torch.ones_like(value, dtype=torch.float64) for key, value in like.items()})
        found = torch.autograd.grad(outputs.sum(), chosen, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else (p * g).detach().abs()
        for name, p, g in zip(names, chosen, found, strict=True)
    }


def synflow_mask(
    task: Predictor,
    like: Mapping[str, Tensor],
    names: Sequence[str],
    share: float,
    rounds: int,
    scope: Scope = "global",
) -> dict[str, Tensor]:
    """Return the mask of iterative synaptic flow: after round k of K a share ``share^(k/K)`` of the weights is left.

    Args:
        task: the model; it is left as it is.
        like: a batch of one, for its shape.
        names: what is ranked.
        share, rounds, scope: see ``MagnitudeConfig``.
    """
    working = task.copy()
    working.model.double().eval()
    with torch.no_grad():
        for value in working.model.state_dict().values():
            if value.is_floating_point():
                value.abs_()
    mask: dict[str, Tensor] = {}
    for number in range(1, rounds + 1):
        # Scores fall off over many orders of magnitude with depth, and ranks of zeros are ties: take the logarithm.
        scores = {name: score.log() for name, score in synflow_scores(working, like, names).items()}
        mask = top_share(scores, share ** (number / rounds), scope)
        zero_outside(working, mask)
    return mask


def imp_mask(task: Task, encoded: Any, names: Sequence[str], config: MagnitudeConfig, seed: int) -> dict[str, Tensor]:
    """Return the mask of iterative magnitude pruning, which trains a copy of the model between its rounds.

    Args:
        task: the model; it is left as it is, but for its account.
        encoded: what it is trained on.
        names: what is ranked.
        config: how.
        seed: of batches and dropout.
    """
    working = task.copy()
    optimizer = torch.optim.Adam(working.model.parameters(), lr=config.imp_learning_rate)
    rounds = max(1, math.ceil(math.log(config.share) / math.log(1 - PER_ROUND)))
    mask: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for number in range(1, rounds + 1):
            parameters = dict(working.named_parameters())
            left = max(config.share, (1 - PER_ROUND) ** number)
            mask = omp_mask({name: parameters[name] for name in names}, left, config.scope)
            zero_outside(working, mask)
            if number == rounds:
                break
            working.model.train()
            for _ in range(config.imp_epochs):
                for batch in torch.randperm(len(encoded)).split(config.imp_batch_size):
                    found = working.statistics(encoded.take(batch.tolist()))
                    loss = found.nll.sum() / found.labelled.sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    zero_outside(working, mask)
            working.model.eval()
    task.cost += working.cost
    return mask


class Magnitude(Selection):
    """The mask of a pruned model: what it keeps may move, what it prunes stays as it is, bitwise.

    On a dense model that confines a method to the weights that pruning would keep; the method ``prune`` sets the others
    to zero first. Rules: ``omp``, the largest ``|w|`` at once; ``imp``, the same in rounds that each take 20 % of what
    is left, between which a copy trains on everything at hand (without going back to early weights, which a finished
    model does not have); ``synflow``, ``|w dR/dw|`` in rounds, R the summed output of the network of absolute weights
    for an input of ones, which needs no data and spares thin layers.

    Ranked are matrices and filters except the head's; the authors rank filters of convolutions alone
    (``prunable=filters``). Norms, biases, embeddings and the head may move as a whole.

    Source: Jia et al. 2023, section 3 and appendix; Han et al. 2015 (imp), Tanaka et al. 2020 (synflow).
    """

    id = "magnitude"
    title = "the weights that pruning keeps (OMP, IMP, SynFlow)"
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv:2304.04934"
    Config: ClassVar[type[SelectionConfig]] = MagnitudeConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also a model in which nothing is to be ranked, and synflow where inputs are texts.

        Raises:
            BadInput: every problem.
        """
        super().check(task, request)
        problems = []
        if not self._ranked(task):
            what = f"finds nothing to rank with prunable={self.config.prunable}"
            problems.append(Problem(f"selection {self.id}", what, "give prunable=matrices or all, or other parameters"))
        if self.config.rule == "synflow" and not _takes_numbers(task):
            what = f"asks a {task.kind} for its output on an input of ones, and it reads tokens"
            problems.append(Problem("select.rule=synflow", what, "use omp or imp"))
        if problems:
            raise BadInput(problems)

    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Rank and choose; what is not ranked may move as a whole."""
        config, ranked = self.config, self._ranked(task)
        if config.rule == "omp":
            kept = omp_mask(ranked, config.share, config.scope)
        elif config.rule == "synflow":
            assert isinstance(task, Predictor)
            like = task.batch(task.encode(request.forget).take([0]))
            kept = synflow_mask(task, like, list(ranked), config.share, config.synflow_rounds, config.scope)
        else:
            encoded = task.encode(request.forget)
            if request.retain is not None:
                encoded = encoded + task.encode(request.retain)
            kept = imp_mask(task, encoded, list(ranked), config, seed)
        return {name: kept.get(name) for name in self.candidates(task)}

    def _ranked(self, task: Task) -> dict[str, Tensor]:
        candidates = self.candidates(task)
        return {name: p for name, p in prunable(task, self.config.prunable).items() if name in candidates}


def _takes_numbers(task: Task) -> bool:
    inputs = getattr(task, "inputs", None)
    return inputs is not None and not isinstance(inputs, TextInputs)
