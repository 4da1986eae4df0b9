"""Objectives on plain padded tensors: no model, no tokenizer, no loop. For comparing them with other code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.tasks.examples import Positions
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Stream


@dataclass(frozen=True)
class Padded:
    """A padded batch of one stream, as another trainer would hand it to its loss; padded on either side.

    Attributes:
        logits: (B, T, V) of the model being trained, unshifted: position t predicts the token at t + 1.
        labels: (B, T) int64, unshifted; -100 where there is no label. A label at position 0 is never predicted.
        attention_mask: (B, T), 0 at padding; only for objectives that read the prompt. All of it if None.
        reference_logits: (B, T, V) of the model before unlearning, where the objective needs it.
        teacher_logits: (B, T, V) of the objective's teacher, if it has one.
        blocks: per decoder block that the objective reads, its output, (B, T, H).
        reference_blocks: the same of the model before unlearning.
    """

    logits: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    reference_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    blocks: Mapping[int, Tensor] = field(default_factory=dict)
    reference_blocks: Mapping[int, Tensor] = field(default_factory=dict)

    def statistics(self, positions: Positions = "answer") -> Statistics:
        """Return what the loop's forward pass would say about this batch, in float32 or better.

        Args:
            positions: which rows are read, see ``tasks.encoding.collate``.
        """
        labels = self.labels
        following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        mask = torch.ones_like(labels) if self.attention_mask is None else self.attention_mask
        read = {
            "answer": following != IGNORED,
            "label": labels != IGNORED,
            "attended": mask != 0,
            "all": torch.ones_like(labels, dtype=torch.bool),
        }[positions]
        labelled = labels if positions == "label" else following
        stats = Statistics(
            logits=_rows(self.logits, read),
            targets=following[read],
            example=read.nonzero()[:, 0],
            counts=(labelled != IGNORED).sum(1),
            ids=[str(b) for b in range(len(labels))],
            blocks={layer: output[read] for layer, output in self.blocks.items()},
            reference_blocks={layer: output[read] for layer, output in self.reference_blocks.items()},
        )
        if self.reference_logits is not None:
            before = _rows(self.reference_logits.detach(), read)
            stats.reference_logits = before.__getitem__
            same = Statistics(before, stats.targets, stats.example, stats.counts, stats.ids)
            stats.reference_nll = same.sequence_nll
        if self.teacher_logits is not None:
            stats.teacher_logits = _rows(self.teacher_logits.detach(), read).__getitem__
        return stats


def _rows(logits: Tensor, read: Tensor) -> Tensor:
    return logits[read].to(torch.promote_types(logits.dtype, torch.float32))


def objective_value(objective: Objective, batches: Mapping[Stream, Padded]) -> Tensor:
    """Return the objective of one step, as the training loop computes it of one micro-batch; a differentiable scalar.

    Args:
        objective: of a method, such as ``NPO(NPOConfig(parity=True)).objective()``. Penalties on weights and turns
            after the first are not part of it.
        batches: a batch per stream that the objective reads. Those of one term have the same examples in the same
            order.

    Raises:
        BadInput: a stream is missing.
    """
    terms = [term for term in objective.active() if term.turn == 0]
    wanted = {stream for term in terms for stream in term.streams}
    if missing := sorted(wanted - set(batches)):
        fix = f"give batches of {', '.join(sorted(wanted))}"
        raise BadInput(Problem("batches", f"of the {missing[0]} stream are needed and not there", fix))
    stats = {stream: batches[stream].statistics(objective.positions(stream)) for stream in wanted}
    total = torch.zeros(())
    for term in terms:
        divisor = term.divisor(*stats[term.streams[0]].sizes(term.positions))
        total = total + term.factor * term.partial_sum([stats[s] for s in term.streams]) / divisor
    return total
