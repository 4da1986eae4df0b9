"""Token and example statistics that every objective is a formula over.

A batch of B examples has R *rows*: the positions whose next token is an answer token. Only these rows go through the
output head. An image classifier is the special case R = B. All statistics are in float32, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.tasks.examples import Positions

IGNORED = -100
# Rows of logits are reduced in chunks of this many numbers, which bounds memory and leaves results unchanged.
LOGIT_CHUNK = 1 << 22
# A log-probability below which the probability is exactly 0 in float32, with room to square it.
LOWEST = -1e6


@dataclass
class Statistics:
    """What one forward pass says about a batch.

    Attributes:
        logits: (R, V) float32, the prediction at each row; (R, 0) where only block outputs were asked for.
        targets: (R,) int64, the token to be predicted; ``-100`` where a row has no label.
        example: (R,) int64, which example of the batch a row belongs to, ascending.
        counts: (B,) int64, labelled rows per example.
        ids: B example ids.
        hidden: (R, H) input of the output head, if it was asked for.
        reference_nll: (B,) summed answer NLL under the reference model, if the objective needs it.
        reference_logits: gives the reference model's logits at a slice of the rows, if the objective needs them; a
            slice at a time, because (R, V) logits of a second model are what fills the memory.
        reference_hidden: (R, H) input of the reference model's head, if the objective needs it.
        teacher_logits: the same of the objective's teacher, if it has one.
        blocks: per decoder block that was asked for, its output at the rows, (R, H); of classifiers and regressors, per
            call of a nonlinearity that was asked for, what it gives out, (B, ...).
        reference_blocks: the same of the reference model, if the objective needs them.
        teacher_blocks: the same of the objective's teacher.
    """

    logits: Tensor
    targets: Tensor
    example: Tensor
    counts: Tensor
    ids: Sequence[str]
    hidden: Tensor | None = None
    reference_nll: Tensor | None = field(default=None)
    reference_logits: Callable[[slice], Tensor] | None = field(default=None)
    reference_hidden: Tensor | None = field(default=None)
    teacher_logits: Callable[[slice], Tensor] | None = field(default=None)
    blocks: Mapping[int, Tensor] = field(default_factory=dict)
    reference_blocks: Mapping[int, Tensor] = field(default_factory=dict)
    teacher_blocks: Mapping[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> Tensor:
        """(R,) bool, rows that have a label."""
        return self.targets != IGNORED

    @cached_property
    def nll(self) -> Tensor:
        """(R,) negative log-likelihood of each row's token in nats; 0 at rows without a label."""
        return F.cross_entropy(self.logits, self.targets, ignore_index=IGNORED, reduction="none")

    @cached_property
    def sequence_nll(self) -> Tensor:
        """(B,) answer NLL summed over the tokens of each example, in nats."""
        return self.per_example(self.nll)

    @cached_property
    def mean_nll(self) -> Tensor:
        """(B,) answer NLL averaged over the tokens of each example, in nats per token."""
        return self.sequence_nll / self.counts

    def per_example(self, per_row: Tensor) -> Tensor:
        """Sum a (R,) quantity over the rows of each example, giving (B,) of its precision.

        Added up in float64 where there is any: one after the other in float32, the few hundred tokens of a long answer
        are off by up to 1e-3 nats.
        """
        wide = per_row.dtype if per_row.device.type == "mps" else torch.float64
        sums = torch.zeros(len(self), dtype=wide, device=per_row.device).index_add(0, self.example, per_row.to(wide))
        return sums.to(per_row.dtype)

    def sizes(self, positions: Positions) -> tuple[list[int], int]:
        """Return the labelled rows of each example, and how many rows a term with these positions reads of the batch.

        Args:
            positions: of the term. Another one may have asked for more rows than an "answer" has.
        """
        counts = self.counts.tolist()
        return counts, sum(counts) if positions == "answer" else len(self.targets)

    def split(self, sizes: Sequence[int]) -> list[Statistics]:
        """Cut a batch that was put together from several streams back into its streams.

        Args:
            sizes: number of examples of each stream, in order.
        """
        rows_before = [0, *torch.bincount(self.example, minlength=len(self)).cumsum(0).tolist()]
        ends = np.cumsum([0, *sizes]).tolist()
        rows = [rows_before[stop] - rows_before[start] for start, stop in pairwise(ends)]
        # Cut in one operation: the gradient of each slice of its own would be as large as the whole.
        logits, targets, example = (whole.split(rows) for whole in (self.logits, self.targets, self.example))
        hidden = [None] * len(rows) if self.hidden is None else self.hidden.split(rows)
        blocks = {layer: output.split(rows) for layer, output in self.blocks.items()}
        parts = []
        for k, (start, stop) in enumerate(pairwise(ends)):
            parts.append(
                replace(
                    self,
                    logits=logits[k],
                    targets=targets[k],
                    example=example[k] - start,
                    counts=self.counts[start:stop],
                    ids=self.ids[start:stop],
                    hidden=hidden[k],
                    blocks={layer: outputs[k] for layer, outputs in blocks.items()},
                    reference_nll=None,
                    reference_logits=None,
                    reference_hidden=None,
                    reference_blocks={},
                    teacher_blocks={},
                )
            )
        return parts


class RegressionStatistics(Statistics):
    """The same for a model that predicts numbers: ``logits`` are the (B, D) numbers, ``targets`` the true ones.

    A prediction is read as the mean of a normal distribution of variance 1/2, on the scale on which the model learns.
    The NLL is then the squared error, and the KL divergence of two predictions their squared distance, both up to a
    constant and averaged over the D numbers; so what is a formula over NLL and KL serves regressors as it stands.
    """

    @property
    def labelled(self) -> Tensor:
        """(B,) bool, all true."""
        return torch.ones(len(self.targets), dtype=torch.bool, device=self.targets.device)

    @cached_property
    def nll(self) -> Tensor:
        """(B,) squared error of each example, averaged over its numbers."""
        return (self.logits - self.targets).square().mean(-1)


@contextmanager
def head_rows(head: nn.Module, rows: Tensor) -> Iterator[list[Tensor]]:
    """Let only some positions through an output head.

    The (B, T, H) input of the head is replaced by its (1, R, H) rows, so the model's own code around the head (soft
    caps, scales) runs unchanged on R rows instead of B * T.

    Args:
        head: the module that maps hidden states to logits.
        rows: (R,) flat positions ``b * T + t``.

    Yields:
        A list that receives the (R, H) rows of each call.
    """
    seen: list[Tensor] = []

    def select(
        _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        hidden = args[0]
        kept = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
        seen.append(kept)
        return (kept.unsqueeze(0), *args[1:]), kwargs

    handle = head.register_forward_pre_hook(select, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def token_statistics(logits: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Reduce (R, V) logits to the four per-token numbers of ``TokenScores``.

    The variance is summed around the mean: ``E[x^2] - mean^2`` loses all digits of a nearly uniform prediction.

    Returns:
        (4, R) float64: log-probability of the target, mean and variance of the log-probability, argmax hit.
    """
    pieces = []
    step = max(1, LOGIT_CHUNK // logits.shape[-1])
    for start in range(0, len(targets), step):
        log_probs = torch.log_softmax(logits[start : start + step].float(), dim=-1)
        target = targets[start : start + step, None]
        probs = log_probs.exp()
        finite = log_probs.clamp_min(LOWEST)  # 0 * -inf must be 0
        mean = (probs * finite).sum(-1)
        variance = (probs * (finite - mean[:, None]).square()).sum(-1)
        hit = log_probs.argmax(-1) == target[:, 0]
        chosen = log_probs.gather(-1, target)[:, 0]
        pieces.append(torch.stack([chosen, mean, variance, hit.float()]).double().cpu())
    return torch.cat(pieces, dim=1).numpy() if pieces else np.empty((4, 0))
