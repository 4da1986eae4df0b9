"""UNDIAL: distil the model from its own predictions with the answer's logit lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.methods.language.soft_targets import soft_cross_entropy
from expunge.methods.terms import RetainConfig
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Term

Rows = Callable[[slice], Tensor]


class UNDIALConfig(RetainConfig):
    """Hyperparameters of UNDIAL; defaults of open-unlearning's configuration (beta 10, gamma 1, alpha 0)."""

    beta: float = Field(10.0, ge=0, description="what is subtracted from the reference's logit of the answer token")
    retain_weight: float = Field(
        0.0, ge=0, description="weight of the retain loss (alpha); at 0 the retain set is not read"
    )
    parity: bool = Field(
        False,
        description="reproduce the reference: average over all B x (T - 1) positions, lowering the logit of token "
        "V - 100 where there is no label, and the KL retain loss over all B x T positions",
    )


def undial_loss(logits: Tensor, reference_logits: Tensor | Rows, targets: Tensor, beta: float) -> Tensor:
    """Per-token UNDIAL loss ``-sum_v q_v log p_v`` with ``q = softmax(z_ref - beta onehot(target))``.

    Args:
        logits: (R, V), or (..., V), of the model being trained.
        reference_logits: the same of the model before unlearning, or a function that gives the rows of a slice.
        targets: (R,) or (...) int64 answer tokens; -100 where there is none.
        beta: how far the answer's logit is lowered.

    Returns:
        (R,) or (...) losses in nats, 0 at rows without a target; their mean over the other rows is the objective. The
        gradient is ``softmax(logits) - q``. The minimum is not 0 but the entropy of q.
    """
    loss = _lowered(logits, reference_logits, targets.clamp_min(0), beta)
    return loss.masked_fill(targets == IGNORED, 0.0)


def undial_reference_loss(logits: Tensor, reference_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """UNDIAL as open-unlearning computes it: the mean over *all* slots that have a next token.

    Its index -100 of positions without a label counts from the end of the vocabulary, so prompts and padding are
    distilled too, with the logit of token V - 100 lowered.

    Args:
        logits: (B, T, V), unshifted.
        reference_logits: (B, T, V).
        labels: (B, T) int64, unshifted; -100 where there is no label.
        beta: how far the label's logit is lowered.

    Returns:
        The scalar loss.

    Raises:
        ValueError: V < 100, where the reference fails too.
    """
    vocabulary = logits.shape[-1]
    if vocabulary < -IGNORED:
        raise ValueError(f"the reference's index -100 does not exist in a vocabulary of {vocabulary} tokens")
    shifted = labels[:, 1:] % vocabulary
    return _lowered(logits[:, :-1], reference_logits[:, :-1], shifted, beta).mean()


def _lowered(logits: Tensor, reference_logits: Tensor | Rows, index: Tensor, beta: float) -> Tensor:
    """Loss of each row, of the shape of ``index``, which says whose logit is lowered."""
    vocabulary, given = logits.shape[-1], reference_logits
    reference = given.reshape(-1, vocabulary).__getitem__ if isinstance(given, Tensor) else given
    lowered = index.reshape(-1, 1)

    def target(rows: slice) -> Tensor:
        kept = reference(rows).detach()
        kept = kept.to(torch.promote_types(kept.dtype, torch.float32))
        return kept.scatter_add(1, lowered[rows], torch.full_like(kept[:, :1], -beta))

    return soft_cross_entropy(logits.reshape(-1, vocabulary), target).reshape(index.shape)


class UNDIAL(ObjectiveMethod):
    """L = gamma mean_t undial_loss(z_t, z_t^ref, y_t) + alpha L_retain, the mean over the answer tokens of the step.

    Self-distillation: the target is what the model said before unlearning, with the answer's logit lowered by beta.
    The authors train LoRA adapters of rank 8 and alpha 16 (``lora.rank=8 lora.alpha=16``); alpha is 0 by default, and
    then no retain set is needed.

    The reference implementation does not mask positions without a label; ``parity=True`` does as it does
    (``undial_reference_loss``). Where a step is cut into micro-batches, each counts by its padded size.

    Source: Dong et al. 2024, arXiv 2402.10052; ``UNDIAL`` of open-unlearning.
    """

    id = "undial"
    title = "distil from the original model's predictions with the answer's logit lowered"
    paper = "Dong et al. 2024, UNDIAL: Self-Distillation with Adjusted Logits, arXiv:2402.10052"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4}
    Config: ClassVar[type[MethodConfig]] = UNDIALConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also parity on a vocabulary that the reference cannot index.

        Raises:
            BadInput: see ``Method.check``; or parity with fewer than 100 tokens in the vocabulary.
        """
        super().check(task, request)
        if self.config.parity and (size := len(task.model.get_output_embeddings().weight)) < -IGNORED:
            what = f"reads token V - 100, and the vocabulary has {size} tokens"
            raise BadInput(Problem(f"method {self.id}: parity", what, "leave parity off"))

    def objective(self) -> Objective:
        """The distillation term and the retain term."""
        config = self.config

        def masked(forget: Statistics) -> Tensor:
            assert forget.reference_logits is not None
            return undial_loss(forget.logits, forget.reference_logits, forget.targets, config.beta)

        def unmasked(forget: Statistics) -> Tensor:
            assert forget.reference_logits is not None
            index = forget.targets % forget.logits.shape[-1]
            loss = _lowered(forget.logits, forget.reference_logits, index, config.beta).view(len(forget), -1)
            width = loss.shape[1]
            # All B x T rows are counted, and the last of each example, which predicts nothing, is not one of theirs.
            keep = torch.ones_like(loss)
            keep[:, -1] = 0
            return (loss * keep * (width / (width - 1))).flatten()

        if config.parity:
            distil = Term(
                "undial", ("forget",), unmasked, "row_mean", config.forget_weight, reference="rows", positions="all"
            )
        else:
            distil = Term("undial", ("forget",), masked, "token_mean", config.forget_weight, reference="rows")
        return Objective((distil, *config.retain_terms()))
