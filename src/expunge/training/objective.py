"""Objectives as lists of weighted terms over shared statistics, with explicit reductions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from expunge.tasks.base import Task
from expunge.tasks.examples import Positions
from expunge.tasks.statistics import RegressionStatistics, Statistics

Reduction = Literal["token_mean", "row_mean", "sequence_mean", "sequence_sum", "example_mean"]
Reference = Literal["none", "sequence_nll", "rows", "teacher"]
Stream = Literal["forget", "alternative", "retain"]


@dataclass(eq=False)
class MovingWeight(ABC):
    """A weight that follows what training does to its term, such as a dual variable.

    The loop works on a copy and keeps the value in checkpoints. Several processes see the same values.

    Attributes:
        value: the weight now; all that there is to remember.
        per: when ``update`` is called: after every optimiser step or after every micro-batch.
    """

    value: float
    per: Literal["step", "micro_batch"] = field(default="step", kw_only=True)

    @abstractmethod
    def update(self, value: float, epoch: int) -> None:
        """Move.

        Args:
            value: what the term was, before weighting, over the whole step or over the micro-batch.
            epoch: of the step, from 0.
        """


@dataclass(frozen=True)
class Term:
    """One summand of an objective.

    Attributes:
        name: what it is called in logs.
        streams: the example streams it reads. Terms that share a stream share its forward pass.
        values: maps the statistics of those streams to one value per row (R,) or per example (B,).
        reduction: how values become the batch's number. B and R count the whole optimiser step, never a micro-batch:

            - "token_mean": values per row, summed, divided by the labelled rows of the step.
            - "row_mean": values per row, summed, divided by all rows that were read (KL over padded positions).
            - "sequence_mean": values per row, averaged over each example's rows, then over examples.
            - "sequence_sum": values per row, summed over each example's rows, averaged over examples.
            - "example_mean": values per example, averaged over examples.
        weight: factor, a number or one that moves; a term of weight 0 is never evaluated and its streams are not read
            for it.
        reference: what it needs of the model before unlearning: nothing, the summed answer NLL per example, or what it
            reads at the rows, logits or block outputs; or "teacher", the same of the objective's teacher.
        positions: which rows of its streams are read.
        blocks: decoder blocks, or nonlinearities, whose outputs it reads instead of logits. A stream of which no term
            reads logits is run no further than the deepest of these blocks.
        hidden: whether it reads the head's input, with a reference to "rows" that of the model before unlearning too.
        turn: in which turn of a step it is minimised, see ``Objective.turns``.
    """

    name: str
    streams: tuple[Stream, ...]
    values: Callable[..., Tensor]
    reduction: Reduction
    weight: float | MovingWeight = 1.0
    reference: Reference = "none"
    positions: Positions = "answer"
    blocks: tuple[int, ...] = ()
    hidden: bool = False
    turn: int = 0

    def __post_init__(self) -> None:
        if self.positions != "answer" and self.reduction not in ("row_mean", "example_mean"):
            raise ValueError(f"term {self.name}: {self.reduction} is defined over answer rows, not {self.positions}")

    @property
    def factor(self) -> float:
        """The weight now."""
        return self.weight.value if isinstance(self.weight, MovingWeight) else self.weight

    def partial_sum(self, statistics: Sequence[Statistics]) -> Tensor:
        """Return the un-normalised sum over a micro-batch; sums of micro-batches add up to the whole step's."""
        values = self.values(*statistics)
        if self.positions == "answer" and self.reduction != "example_mean":
            # Another term may have asked for more rows of the same streams.
            values = values.masked_fill(~statistics[0].labelled, 0.0)
        if self.reduction == "sequence_mean":
            return (statistics[0].per_example(values) / statistics[0].counts).sum()
        return values.sum()

    def divisor(self, counts: Sequence[int], rows: int) -> int:
        """Return what the step's sum is divided by.

        Args:
            counts: labelled rows of each example of the term's first stream in the whole step.
            rows: how many rows of them the term reads.
        """
        if self.reduction == "token_mean":
            return max(1, sum(counts))  # a step whose examples have no label at all adds nothing
        return rows if self.reduction == "row_mean" else len(counts)


class Penalty(ABC):
    """A summand of an objective that depends on the weights alone.

    Attributes:
        name: what it is called in logs.
    """

    name: str

    @abstractmethod
    def add_gradient(self, weights: Mapping[str, Tensor], done: float) -> Tensor:
        """Add its gradient to that of the weights.

        Args:
            weights: the weights that train, by name.
            done: share of the run that lies behind, in [0, 1).

        Returns:
            Its value, a scalar.
        """

    def after_step(self, weights: Mapping[str, Tensor], rate: float, done: float) -> None:  # noqa: B027 - few need it
        """Change the weights after an optimiser step, as proximal operators do; nothing by default.

        Args:
            weights, done: as in ``add_gradient``.
            rate: the learning rate of the step.
        """


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms to be minimised.

    Attributes:
        terms: the summands.
        anchor: the stream whose passes count as epochs; the other streams supply partners for its examples.
        teacher: a frozen model, other than the one before unlearning, whose logits or block outputs some terms read.
        penalty: a summand that reads no examples; part of the first turn.
        turns: for objectives that are minimised alternately on the same batches: one factor on the learning rate per
            turn. Each turn sees the weights that the one before left and has an optimiser of its own.
        evaluation: train in evaluation mode: without dropout, and with batch normalisation as it was.
    """

    terms: tuple[Term, ...]
    anchor: Stream = "forget"
    teacher: Task | None = None
    penalty: Penalty | None = None
    turns: tuple[float, ...] = (1.0,)
    evaluation: bool = False

    def __post_init__(self) -> None:
        if {term.turn for term in self.terms} - set(range(len(self.turns))):
            raise ValueError(f"a term belongs to a turn that is not there; there are {len(self.turns)}")
        for stream in self.streams():
            wanted = {term.positions for term in self.reading(stream)}
            if {"attended", "all"} <= wanted or ("label" in wanted and len(wanted) > 1):
                raise ValueError(f"two terms read different prompt rows of the {stream} stream")

    def turn(self, number: int) -> Objective:
        """Return the part of the objective that one turn minimises, as an objective of one turn."""
        own = tuple(replace(term, turn=0) for term in self.terms if term.turn == number)
        return replace(self, terms=own, penalty=None if number else self.penalty, turns=(self.turns[number],))

    def active(self) -> tuple[Term, ...]:
        """Terms that are evaluated: those with a weight other than zero, or one that moves."""
        return tuple(term for term in self.terms if isinstance(term.weight, MovingWeight) or term.weight != 0)

    def own(self) -> Objective:
        """Return the same objective with moving weights of its own, so that using it leaves this one as it is."""
        return replace(self, terms=tuple(replace(term, weight=copy(term.weight)) for term in self.terms))

    def moving(self) -> dict[str, MovingWeight]:
        """The weights that move, by the names of their terms."""
        return {term.name: term.weight for term in self.terms if isinstance(term.weight, MovingWeight)}

    def streams(self) -> tuple[Stream, ...]:
        """Streams that are read, the anchor first."""
        read = {stream for term in self.active() for stream in term.streams} | {self.anchor}
        order: tuple[Stream, ...] = ("forget", "alternative", "retain")
        return (self.anchor, *(s for s in order if s in read and s != self.anchor))

    def reading(self, stream: Stream) -> tuple[Term, ...]:
        """Active terms that read a stream."""
        return tuple(term for term in self.active() if stream in term.streams)

    def reference(self, stream: Stream) -> Reference:
        """The most that any active term needs of the reference model's predictions on a stream."""
        needs = {term.reference for term in self.reading(stream) if not term.blocks}
        return "rows" if "rows" in needs else "sequence_nll" if "sequence_nll" in needs else "none"

    def needs_reference(self, stream: Stream) -> bool:
        """Whether any active term needs anything of the model before unlearning on a stream."""
        return self.reference(stream) != "none" or bool(self.reference_blocks(stream))

    def hidden(self, stream: Stream) -> bool:
        """Whether any active term reads the head's input on a stream."""
        return any(term.hidden for term in self.reading(stream))

    def as_taught(self) -> Objective:
        """Return the objective as its teacher's outputs are read for it: those count as a reference, nothing else."""
        kinds: dict[bool, Reference] = {True: "rows", False: "none"}
        return replace(
            self,
            terms=tuple(
                replace(term, reference=kinds[term.reference == "teacher"], hidden=False) for term in self.terms
            ),
        )

    def reference_blocks(self, stream: Stream) -> tuple[int, ...]:
        """Blocks whose outputs under the reference model some active term needs on a stream."""
        return tuple(sorted({b for t in self.reading(stream) if t.reference == "rows" for b in t.blocks}))

    def blocks(self, stream: Stream) -> tuple[int, ...]:
        """Blocks whose outputs some active term reads on a stream."""
        return tuple(sorted({block for term in self.reading(stream) for block in term.blocks}))

    def reads_logits(self, stream: Stream) -> bool:
        """Whether some active term reads the predictions on a stream, and not block outputs alone."""
        return any(not term.blocks for term in self.reading(stream))

    def positions(self, stream: Stream) -> Positions:
        """The widest set of rows that any active term reads on a stream."""
        wanted = {term.positions for term in self.reading(stream)}
        widest: tuple[Positions, ...] = ("all", "attended", "label")
        return next((p for p in widest if p in wanted), "answer")

    def components(self) -> list[tuple[tuple[Stream, ...], tuple[Term, ...]]]:
        """Group streams that some term couples; each group needs its graphs alive together, groups do not."""
        groups: list[set[Stream]] = []
        for stream in self.streams():
            if any(stream in term.streams for term in self.active()):
                groups.append({stream})
        for term in self.active():
            touched = [g for g in groups if g & set(term.streams)]
            merged: set[Stream] = set().union(*touched)
            groups = [g for g in groups if g not in touched] + [merged]
        ordered = [tuple(s for s in self.streams() if s in g) for g in groups]
        ordered.sort(key=lambda g: self.streams().index(g[0]))
        return [(g, tuple(t for t in self.active() if set(t.streams) <= set(g))) for g in ordered]


@torch.no_grad()
def shrink_towards(weight: Tensor, centre: Tensor | float, threshold: float) -> None:
    """Move a weight towards a centre by at most ``threshold`` in each entry, in place: the proximal operator of l1.

    Args:
        weight: any shape.
        centre: of the same shape, or a number.
        threshold: entries nearer than this end exactly at the centre.
    """
    away = weight - centre
    weight.copy_(centre + away.sign() * (away.abs() - threshold).clamp_min(0.0))


def nll(statistics: Statistics) -> Tensor:
    """(R,) negative log-likelihood of the answer tokens."""
    return statistics.nll


def negative_nll(statistics: Statistics) -> Tensor:
    """(R,) log-likelihood of the answer tokens: minimising it is gradient ascent on the loss."""
    return -statistics.nll


# Rows of logits are worked on in chunks of about this many numbers, which bounds memory and changes nothing else.
CHUNK = 1 << 21


class _RowKL(torch.autograd.Function):
    """Forward KL per row with the closed-form gradient ``softmax(student) - softmax(reference)``.

    The gradient is formed in the forward, chunk by chunk, so that one (R, V) tensor is kept instead of the five that
    composing log-softmax, exp and products would keep alive.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, student: Tensor, reference: Callable[[slice], Tensor]
    ) -> Tensor:
        step = max(1, CHUNK // student.shape[-1])
        precise = torch.promote_types(student.dtype, torch.float32)
        divergence = student.new_empty(len(student), dtype=precise)
        gradient = torch.empty_like(student, dtype=precise)
        for start in range(0, len(student), step):
            rows = slice(start, start + step)
            log_student = torch.log_softmax(student[rows], dim=-1, dtype=precise)
            log_reference = torch.log_softmax(reference(rows), dim=-1, dtype=precise)
            probs = log_reference.exp()
            torch.exp(log_student, out=gradient[rows])
            gradient[rows] -= probs
            divergence[rows] = probs.mul_(log_reference.sub_(log_student)).sum(-1)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype  # type: ignore[attr-defined]
        return divergence

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (gradient * grads[0][:, None]).to(ctx.dtype), None  # type: ignore[attr-defined]


def row_kl(student_logits: Tensor, reference_logits: Tensor | Callable[[slice], Tensor]) -> Tensor:
    """(...) forward KL(reference || student) in nats; the gradient reaches the student only.

    Computed in float32 or better, whatever the precision of the logits.

    Args:
        student_logits: (..., V), such as (R, V).
        reference_logits: of the same shape, or a function that gives the rows of a slice of all (R, V) rows.
    """
    vocabulary = student_logits.shape[-1]
    given = reference_logits
    rows = given.reshape(-1, vocabulary).__getitem__ if isinstance(given, Tensor) else given
    divergence: Tensor = _RowKL.apply(student_logits.reshape(-1, vocabulary), rows)
    return divergence.reshape(student_logits.shape[:-1])


def kl_to_reference(statistics: Statistics) -> Tensor:
    """(R,) forward KL(reference || model) at each row, in nats; for numbers their mean squared distance."""
    assert statistics.reference_logits is not None
    if isinstance(statistics, RegressionStatistics):
        return (statistics.logits - statistics.reference_logits(slice(None))).square().mean(-1)
    return row_kl(statistics.logits, statistics.reference_logits)
