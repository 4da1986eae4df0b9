"""CE-U: cross-entropy towards the model's own prediction without the answer token."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.language.soft_targets import soft_cross_entropy
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Stream, Term

log = logging.getLogger(__name__)


class CEUConfig(MethodConfig):
    """Hyperparameters of CE-U; defaults of open-unlearning."""

    ignore_first_n_answer_tokens: int = Field(
        1, ge=0, description="answer tokens left alone at the start of each answer (footnote in the paper)"
    )
    forget_weight: float = Field(1.0, gt=0, description="weight of the loss")


def ceu_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Per-token CE-U loss ``-sum_v q_v log p_v``, q the model's own p without the target token, renormalised.

    ``q = softmax(sg(z) with z[target] = -inf)``, sg the stopped gradient.

    Args:
        logits: (R, V), or (..., V), of the model being trained.
        targets: (R,) or (...) int64 answer tokens; -100 where there is none.

    Returns:
        (R,) or (...) losses in nats, 0 at rows without a target; their mean over the other rows is the objective. With
        p_y the probability of the target, the gradient is ``p_y`` at the target and ``-p_v p_y / (1 - p_y)`` elsewhere.
    """
    index = targets.reshape(-1, 1).clamp_min(0)
    flat = logits.reshape(-1, logits.shape[-1])
    current = flat.detach()
    loss = soft_cross_entropy(flat, lambda rows: current[rows].scatter(1, index[rows], -math.inf))
    return loss.reshape(targets.shape).masked_fill(targets == IGNORED, 0.0)


def ceu_reference_loss(logits: Tensor, labels: Tensor, ignore_first_n: int = 1) -> Tensor:
    """CE-U as open-unlearning computes it on a padded batch; a scalar, NaN where no label is left.

    It counts the first labels of each example before the shift. So where the first token of the text is a label, which
    nothing predicts, this is one of those that are left alone.

    Args:
        logits: (B, T, V), unshifted.
        labels: (B, T) int64, unshifted; -100 where there is no label.
        ignore_first_n: labels left alone at the start of each example.
    """
    labelled = labels != IGNORED
    kept = labels.masked_fill(labelled & (labelled.cumsum(-1) <= ignore_first_n), IGNORED)[:, 1:]
    return ceu_loss(logits[:, :-1], kept).sum() / (kept != IGNORED).sum()


def place_in_example(example: Tensor) -> Tensor:
    """(R,) how many rows of the same example come before each row, for ascending (R,) example numbers."""
    first = torch.searchsorted(example, example)
    return torch.arange(len(example), device=example.device) - first


@dataclass(frozen=True)
class _LaterTokens(Term):
    """A mean over the answer tokens of the step that come after the first few of each example."""

    skipped: int = 0

    def divisor(self, counts: Sequence[int], rows: int) -> int:
        """Count the answer tokens that remain."""
        return max(1, sum(max(0, count - self.skipped) for count in counts))


class CEU(ObjectiveMethod):
    """L = gamma mean_t ceu_loss(z_t, y_t), the mean over the answer tokens of the step after each answer's first n.

    The target comes from the *current* model, so there is no reference model, and there is no retain term. Examples
    whose answers (end of sequence included) have no more than n tokens are left out, as they have nothing to train.

    Source: Yang 2025, arXiv 2503.01224; ``CEU`` of open-unlearning.
    """

    id = "ceu"
    title = "cross-entropy towards the model's own prediction without the answer token"
    paper = "Yang 2025, CE-U: Cross Entropy Unlearning, arXiv:2503.01224"
    Config: ClassVar[type[MethodConfig]] = CEUConfig

    def objective(self) -> Objective:
        """The cross-entropy over the later answer tokens."""
        skipped = self.config.ignore_first_n_answer_tokens

        def values(forget: Statistics) -> Tensor:
            ignored = place_in_example(forget.example) < skipped
            return ceu_loss(forget.logits, forget.targets.masked_fill(ignored, IGNORED))

        term = _LaterTokens("ceu", ("forget",), values, "token_mean", self.config.forget_weight, skipped=skipped)
        return Objective((term,))

    def examples(self, stream: Stream, task: Task, request: DeletionRequest) -> Dataset:
        """Return the examples with more answer tokens than are ignored.

        Raises:
            BadInput: there is none.
        """
        found = super().examples(stream, task, request)
        encoded, n = task.encode(found), self.config.ignore_first_n_answer_tokens
        long = [i for i in range(len(encoded)) if encoded.labelled(i) > n]
        if not long:
            what = f"is {n}, and no answer of the {stream} set has more tokens"
            raise BadInput(Problem(f"method {self.id}: ignore_first_n_answer_tokens", what, "lower it"))
        if len(long) == len(encoded):
            return found
        log.warning("%d of %d examples have no answer token after the first %d", len(found) - len(long), len(found), n)
        return found.select(long)
