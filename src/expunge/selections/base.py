"""The contract of a selection: which weights may move.

A selection is one file in this room with one subclass of ``Selection``. Any gradient method can be confined to it
(``--set select.by=NAME``); the training loop then leaves everything outside bitwise as it was.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.registry import Registry
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task

# Parameter name -> bool tensor of its shape, or None for all of it. Parameters that are not named do not move.
Mask = Mapping[str, Tensor | None]
Scope = Literal["global", "tensor"]
Rounding = Literal["chosen", "left_out", "down"]


class SelectionConfig(BaseModel):
    """Settings of a selection; unknown keys are errors. Subclass it and give every field a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    parameters: str = Field(
        "", description="regular expression: only parameters whose name it is found in may move; all if empty"
    )


class Selection(ABC):
    """One way to choose the weights that may move.

    Class attributes:
        id: name on the command line.
        title: one line on what it chooses.
        tasks: kinds of model it serves; empty for every kind.
        needs: example sets beyond the forget set that it cannot do without.
        paper: source.
        Config: its settings.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str]
    Config: ClassVar[type[SelectionConfig]] = SelectionConfig

    def __init__(self, config: SelectionConfig | None = None):
        self.config: Any = config if config is not None else self.Config()

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse before any compute what cannot work.

        Raises:
            BadInput: wrong kind of model, an example set is missing, no parameter has such a name; all are named.
        """
        problems = []
        if self.tasks and task.kind not in self.tasks:
            what = f"does not serve {task.kind}"
            problems.append(Problem(f"selection {self.id}", what, f"it serves {', '.join(self.tasks)}"))
        for role in self.needs:
            if getattr(request, role) is None:
                problems.append(Problem(f"selection {self.id}", f"needs a {role} set", f"give one with --{role} FILE"))
        if not self.candidates(task):
            names = [name for name, _ in task.named_parameters()]
            what = f"no parameter's name matches '{self.config.parameters}'"
            problems.append(Problem("select.parameters", what, f"names are like {', '.join(names[:3])}"))
        if problems:
            raise BadInput(problems)

    def candidates(self, task: Task) -> dict[str, Tensor]:
        """Return the parameters that ``parameters`` leaves to choose among."""
        wanted = re.compile(self.config.parameters)
        return {name: p for name, p in task.named_parameters() if wanted.search(name)}

    @abstractmethod
    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Choose.

        Args:
            task: the model before unlearning; it is left as it is.
            request: the example sets.
            seed: everything random follows from it.

        Returns:
            The mask.
        """


SELECTIONS: Registry[Selection] = Registry("expunge.selections", Selection, "selection")  # type: ignore[type-abstract]


def top_share(
    scores: Mapping[str, Tensor], share: float, scope: Scope = "global", *, rounding: Rounding = "chosen"
) -> dict[str, Tensor]:
    """Return a mask of the entries with the highest scores.

    Exactly ``round(share * entries)`` are chosen; among equal scores, the first in the order of the mapping and within
    a tensor. NaN scores are never chosen before others.

    Args:
        scores: parameter name -> scores of its entries.
        share: how many, in (0, 1].
        scope: rank all entries together, or each tensor by itself.
        rounding: of the number of entries that are chosen, or of that of the others, which differs by one where both
            are halves; or "down", of those that are chosen.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, not in (0, 1]")
    if scope == "tensor":
        return {name: top_share({name: value}, share, rounding=rounding)[name] for name, value in scores.items()}
    parts = [value.detach().to(torch.promote_types(value.dtype, torch.float32)).flatten() for value in scores.values()]
    flat = torch.cat(parts)
    flat = flat.masked_fill(flat.isnan(), -torch.inf)
    size = flat.numel()
    keep = {"chosen": round(share * size), "left_out": size - round((1 - share) * size), "down": int(share * size)}[
        rounding
    ]
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if keep:
        threshold = torch.kthvalue(flat, flat.numel() - keep + 1).values
        chosen = flat > threshold
        ties = (flat == threshold).nonzero()[:, 0]
        chosen[ties[: keep - int(chosen.sum())]] = True
    masks = chosen.split([value.numel() for value in scores.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(scores.items(), masks, strict=True)}


def both(one: Mask | None, other: Mask | None) -> Mask | None:
    """Return the mask of the weights that both masks let move; None lets all of them.

    Raises:
        BadInput: there are none.
    """
    if one is None or other is None:
        return one if other is None else other
    shared: dict[str, Tensor | None] = {}
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        shared[name] = a if b is None else b if a is None else a & b.to(a.device)
    if not any(part is None or bool(part.any()) for part in shared.values()):
        what = "leaves out every weight that is to be trained"
        raise BadInput(Problem("select", what, "let it choose more"))
    return shared


@torch.no_grad()
def zero_outside(task: Task, mask: Mask) -> None:
    """Set to zero what a mask leaves out of the parameters that it names."""
    for name, parameter in task.named_parameters():
        part = mask.get(name)
        if part is not None:
            parameter.masked_fill_(~part.to(parameter.device), 0.0)


def selected_share(mask: Mask, sizes: Mapping[str, int]) -> float:
    """Return which share of all weights a mask lets move.

    Args:
        mask: the mask.
        sizes: parameter name -> how many weights it has, of the whole model.
    """
    moving = sum(sizes[name] if part is None else int(part.sum()) for name, part in mask.items())
    return moving / sum(sizes.values())


def sizes_of(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Return how many weights each parameter has."""
    return {name: p.numel() for name, p in parameters}
