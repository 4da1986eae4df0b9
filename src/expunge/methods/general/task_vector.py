"""Task vector negation: learn the forget set further, then walk the same way backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run, Unlearned
from expunge.methods.strengths import StrengthConfig, check_strengths, search_strength
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import StopSettings


class TaskVectorConfig(StrengthConfig):
    """Hyperparameters of task vector negation; defaults of MUSE."""

    strength: float = Field(1.0, gt=0, description="how much of the task vector is subtracted (lambda)")
    parity: bool = Field(
        False, description="reproduce MUSE's code: round to the weights' own precision after every operation"
    )


def negate_task_vector(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], strength: float, *, parity: bool = False
) -> dict[str, Tensor]:
    """Return ``base - strength (tuned - base)`` per floating-point tensor, and every other tensor as it is in base.

    Computed in float32 or better and rounded once. Where the difference is a low-rank product ``B A``, this is the
    product with the sign of *one* factor turned; turning both would change nothing.

    Args:
        base: state of the model to forget with, such as a ``state_dict``; it is left as it is.
        tuned: state of the same model after training on what is to be forgotten.
        strength: how much of the difference is subtracted.
        parity: do as the reference code does: compute in the tensors' own precision, and leave out those of int64 and
            uint8; loaded strictly, its result lacks buffers.

    Raises:
        ValueError: the two states have other names or shapes. Nothing is dropped or broadcast.
    """
    other = {name for name in base.keys() | tuned.keys() if name not in base or name not in tuned}
    other |= {name for name in base.keys() & tuned.keys() if base[name].shape != tuned[name].shape}
    if other:
        raise ValueError(f"the two models differ in {len(other)} tensor(s), such as {min(other)}")
    if parity:
        left = {name: start for name, start in base.items() if start.dtype not in (torch.int64, torch.uint8)}
        return {name: start + strength * -(tuned[name] - start) for name, start in left.items()}
    out = {}
    for name, start in base.items():
        if start.is_floating_point():
            exact = torch.promote_types(start.dtype, torch.float32)
            here = start.to(exact)
            out[name] = (here - strength * (tuned[name].to(here) - here)).to(start.dtype)
        else:
            out[name] = start.clone()
    return out


class TaskVector(ObjectiveMethod):
    """theta' = theta - lambda (theta_ft - theta), theta_ft = theta trained further on CE(forget), token mean.

    Buffers stay as they were (mirrored, a variance of batch normalisation may fall below zero), tied weights stay tied.
    With LoRA the vector is the adapter's product, of which one factor is negated (Zhang et al. 2023). Fine-tuning is
    that of MUSE: 10 epochs at a constant 1e-5; MUSE takes lambda 1 by default and 5 on books.

    The rules of ``stop`` do not watch the fine-tuning, which learns what is to be forgotten: they judge the
    ``strengths``. What every strength did that was tried, and the choice, is in the outcome's ``config["search"]``.

    Source: Ilharco et al. 2023, arXiv 2212.04089; the algorithm ``tv`` of muse_bench.
    """

    id = "task_vector"
    title = "train further on the forget set, then subtract what that changed"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    paper = "Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv:2212.04089"
    train_defaults: ClassVar[Mapping[str, Any]] = {"schedule": "constant", "warmup": 0.0}
    Config: ClassVar[type[MethodConfig]] = TaskVectorConfig

    def objective(self) -> Objective:
        """CE(forget), token mean: what the task vector is made with."""
        return Objective((Term("forget_nll", ("forget",), nll, "token_mean"),))

    def required(self) -> tuple[str, ...]:
        """The retain set where a strength is searched for."""
        return ("retain",) if self.config.strengths else ()

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Fine-tune a copy of the model and mirror it at the original.

        Raises:
            BadInput: see ``Method.check``; rules to stop by without strengths to judge; or no strength that keeps the
                retain NLL below the ceiling.
        """
        self.check(task, request)
        self._check_stop(run, request)
        tuning = replace(run, train=run.train.model_copy(update={"stop": StopSettings()}))
        outcome = super().apply(task, request, tuning)
        outcome.train = run.train.model_dump(mode="json")
        assert outcome.training is not None
        model = outcome.model.model
        base = task.model.state_dict()
        tuned = {name: value.detach().clone() for name, value in model.state_dict().items()}
        chosen = self.config.strength
        if self.config.strengths:

            def at(strength: float) -> None:
                self._mirror(model, base, tuned, strength)

            search, cost = search_strength(outcome.model, at, self.config, request, run)
            chosen = search["chosen"]
            outcome.config["search"] = search
            outcome.training.probe_cost += cost
            outcome.cost += cost
        self._mirror(model, base, tuned, chosen)
        outcome.training.stop_reason += f"; {chosen:g} times the task vector was subtracted"
        return outcome

    def _mirror(self, model: Any, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], strength: float) -> None:
        # What parity leaves out stays as it was.
        state = {**base, **negate_task_vector(base, tuned, strength, parity=self.config.parity)}
        if not self.config.parity:
            state |= {name: base[name] for name, _ in model.named_buffers() if name in base}
        model.load_state_dict(state)

    def _check_stop(self, run: Run, request: DeletionRequest) -> None:
        super()._check_stop(run, request)
        check_strengths(self.config, run.train.stop)
