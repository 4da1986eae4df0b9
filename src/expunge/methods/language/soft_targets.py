"""Cross-entropy against a target distribution that is made a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from expunge.training.objective import CHUNK


class _SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy per row with the closed-form gradient ``softmax(logits) - target``.

    The gradient is formed in the forward, chunk by chunk, so that one (R, V) tensor is kept; composing softmax,
    log-softmax and a product would keep the whole target and three more.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: Tensor, target_logits: Callable[[slice], Tensor]
    ) -> Tensor:
        step = max(1, CHUNK // logits.shape[-1])
        precise = torch.promote_types(logits.dtype, torch.float32)
        loss = logits.new_empty(len(logits), dtype=precise)
        gradient = torch.empty_like(logits, dtype=precise)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            target = torch.softmax(target_logits(rows), dim=-1, dtype=precise)
            log_probs = torch.log_softmax(logits[rows], dim=-1, dtype=precise)
            # Not a product of matrices, which autocast would round.
            loss[rows] = -(target * log_probs).sum(-1)
            gradient[rows] = log_probs.exp_().sub_(target)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype  # type: ignore[attr-defined]
        return loss

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (gradient * grads[0][:, None]).to(ctx.dtype), None  # type: ignore[attr-defined]


def soft_cross_entropy(logits: Tensor, target_logits: Callable[[slice], Tensor]) -> Tensor:
    """(R,) cross-entropy ``-sum_v q_v log p_v`` in nats, ``p = softmax(logits)`` and ``q = softmax(target_logits)``.

    Computed in float32 or better, whatever the precision of the logits.

    Args:
        logits: (R, V); the gradient reaches these only.
        target_logits: gives the logits of the target at a slice of the rows, such as (r, V). It is called with slices
            that bound memory, in order, and each result is used once.
    """
    loss: Tensor = _SoftCrossEntropy.apply(logits, target_logits)
    return loss
