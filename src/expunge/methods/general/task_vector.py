"""Task vector negation: learn the forget set further, then walk the same way backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, ObjectiveMethod, Run, Unlearned
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.training.objective import Objective, Term, nll
from expunge.training.probe import Probe
from expunge.training.settings import StopSettings


class TaskVectorConfig(MethodConfig):
    """Hyperparameters of task vector negation; defaults of MUSE."""

    strength: float = Field(1.0, gt=0, description="how much of the task vector is subtracted (lambda)")
    strengths: tuple[PositiveFloat, ...] = Field(
        (),
        description="try these instead, from the smallest on, and take the last before the retain NLL rises by more "
        "than retain_rise; with a forget target (stop.forget_target), the one up to there that comes closest to it",
    )
    retain_rise: PositiveFloat = Field(
        0.05,
        description="how far a strength may raise the retain NLL, in nats per token; 0.05 keeps 95 % of the "
        "probability per token",
    )


@dataclass(frozen=True)
class Tried:
    """What one strength does to a seeded subset of the sets; NLLs are means over examples, in nats per token."""

    strength: float
    forget_nll: float
    retain_nll: float


def negate_task_vector(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """Return ``base - strength (tuned - base)`` per floating-point tensor, and every other tensor as it is in base.

    Computed in float32 or better and rounded once. Where the difference is a low-rank product ``B A``, this is the
    product with the sign of *one* factor turned; turning both would change nothing.

    Args:
        base: state of the model to forget with, such as a ``state_dict``; it is left as it is.
        tuned: state of the same model after training on what is to be forgotten.
        strength: how much of the difference is subtracted.

    Raises:
        ValueError: the two states have other names or shapes. Nothing is dropped or broadcast.
    """
    other = {name for name in base.keys() | tuned.keys() if name not in base or name not in tuned}
    other |= {name for name in base.keys() & tuned.keys() if base[name].shape != tuned[name].shape}
    if other:
        raise ValueError(f"the two models differ in {len(other)} tensor(s), such as {min(other)}")
    out = {}
    for name, start in base.items():
        if start.is_floating_point():
            exact = torch.promote_types(start.dtype, torch.float32)
            here = start.to(exact)
            out[name] = (here - strength * (tuned[name].to(here) - here)).to(start.dtype)
        else:
            out[name] = start.clone()
    return out


def choose_strength(tried: Sequence[Tried], ceiling: float, target: float | None = None) -> Tried | None:
    """Choose among the strengths up to the first whose retain NLL exceeds the ceiling.

    What lies beyond is not trusted even if its retain NLL is lower again: the model broke on the way there.

    Args:
        tried: what each strength does.
        ceiling: highest retain NLL, in nats per token.
        target: forget NLL to come closest to; None takes the largest strength.

    Returns:
        The choice, or None where already the smallest strength exceeds the ceiling.
    """
    ascending = sorted(tried, key=lambda t: t.strength)
    allowed = list(takewhile(lambda t: t.retain_nll <= ceiling, ascending))
    if not allowed:
        return None
    if target is None:
        return max(allowed, key=lambda t: t.strength)
    return min(allowed, key=lambda t: (abs(t.forget_nll - target), t.strength))


class TaskVector(ObjectiveMethod):
    """theta' = theta - lambda (theta_ft - theta), theta_ft = theta trained further on CE(forget), token mean.

    Integer buffers stay, tied weights stay tied. With LoRA the vector is the adapter's product, of which one factor
    is negated (Zhang et al. 2023). Fine-tuning is that of MUSE: 10 epochs at a constant 1e-5; MUSE takes lambda 1 by
    default and 5 on books.

    The rules of ``stop`` do not watch the fine-tuning, which learns what is to be forgotten: they judge the
    ``strengths``. What every strength did that was tried, and the choice, is in the outcome's ``config["search"]``.

    Source: Ilharco et al. 2023, arXiv 2212.04089; the algorithm ``tv`` of muse_bench.
    """

    id = "task_vector"
    title = "train further on the forget set, then subtract what that changed"
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
            search, cost = self._search(outcome.model, base, tuned, request, run)
            chosen = search["chosen"]
            outcome.config["search"] = search
            outcome.training.probe_cost += cost
            outcome.cost += cost
        model.load_state_dict(negate_task_vector(base, tuned, chosen))
        outcome.training.stop_reason += f"; {chosen:g} times the task vector was subtracted"
        return outcome

    def _search(
        self, new: Task, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], request: DeletionRequest, run: Run
    ) -> tuple[dict[str, Any], Cost]:
        """Measure strengths until one is too much, and choose."""
        stop = run.train.stop if run.train.stop.every else StopSettings(probe_size=run.train.stop.probe_size)
        sets = {role: new.encode(examples) for role, examples in request.sets().items()}
        if stop.forget_target != "holdout":
            sets.pop("holdout", None)
        probe = Probe(sets, stop, run.train.seed, run.oracle)
        rise = min(self.config.retain_rise, stop.retain_ceiling or self.config.retain_rise)
        before, spent = new.cost.snapshot(), Cost()
        tried: list[Tried] = []
        with spent.measured():
            for strength in [0.0, *sorted(set(self.config.strengths))]:
                new.model.load_state_dict(negate_task_vector(base, tuned, strength))
                point = probe.look(new, len(tried))
                assert point.forget_nll is not None
                assert point.retain_nll is not None
                tried.append(Tried(strength, point.forget_nll, point.retain_nll))
                ceiling = tried[0].retain_nll + rise
                if strength and not point.retain_nll <= ceiling:
                    break
        cost = new.cost - before
        cost.seconds = spent.seconds
        best = choose_strength(tried[1:], ceiling, probe.target)
        if best is None:
            start, least = tried[0], tried[1]
            what = f"raise the retain NLL by more than {rise:g} nats per token: already {least.strength:g} takes it"
            what += f" from {start.retain_nll:.3f} to {least.retain_nll:.3f}"
            raise BadInput(Problem("strengths", what, "try smaller ones, or raise retain_rise"))
        found = {"retain_ceiling": ceiling, "forget_target": probe.target, "tried": [asdict(t) for t in tried]}
        return {"chosen": best.strength, **found}, cost

    def _check_stop(self, run: Run, request: DeletionRequest) -> None:
        super()._check_stop(run, request)
        stop = run.train.stop
        if stop.every and not self.config.strengths:
            rules = {"forget_target": stop.forget_target != "none", "retain_ceiling": stop.retain_ceiling is not None}
            what = "has nothing to judge: training learns the forget set, and one strength is given"
            problems = [
                Problem(f"stop.{name}", what, "give strengths to choose among") for name, on in rules.items() if on
            ]
            if problems:
                raise BadInput(problems)
