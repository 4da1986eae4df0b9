"""Token and example statistics that every objective is a formula over.

A batch of B examples has R *rows*: the positions whose next token is an answer token. Only these rows go through the
output head. An image classifier is the special case R = B. All statistics are in float32, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


@dataclass
class Statistics:
    """What one forward pass says about a batch.

    Attributes:
        logits: (R, V) float32, the prediction at each row.
        targets: (R,) int64, the token to be predicted; ``-100`` where a row has no label.
        example: (R,) int64, which example of the batch a row belongs to, ascending.
        counts: (B,) int64, labelled rows per example.
        ids: B example ids.
        hidden: (R, H) input of the output head, if it was asked for.
        reference_nll: (B,) summed answer NLL under the reference model, if the objective needs it.
        reference_logits: (R, V) the reference model's logits at the same rows, if the objective needs them.
    """

    logits: Tensor
    targets: Tensor
    example: Tensor
    counts: Tensor
    ids: Sequence[str]
    hidden: Tensor | None = None
    reference_nll: Tensor | None = field(default=None)
    reference_logits: Tensor | None = field(default=None)

    def __len__(self) -> int:
        return len(self.ids)

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
        """Sum a (R,) quantity over the rows of each example, giving (B,)."""
        return torch.zeros(len(self), dtype=per_row.dtype, device=per_row.device).index_add(0, self.example, per_row)

    def split(self, sizes: Sequence[int]) -> list[Statistics]:
        """Cut a batch that was put together from several streams back into its streams.

        Args:
            sizes: number of examples of each stream, in order.
        """
        parts, start_example, start_row = [], 0, 0
        rows_before = torch.bincount(self.example, minlength=len(self)).cumsum(0).tolist()
        for size in sizes:
            stop_example = start_example + size
            stop_row = rows_before[stop_example - 1] if stop_example else 0
            rows = slice(start_row, stop_row)
            parts.append(
                Statistics(
                    logits=self.logits[rows],
                    targets=self.targets[rows],
                    example=self.example[rows] - start_example,
                    counts=self.counts[start_example:stop_example],
                    ids=self.ids[start_example:stop_example],
                    hidden=None if self.hidden is None else self.hidden[rows],
                )
            )
            start_example, start_row = stop_example, stop_row
        return parts
