"""How strongly to subtract what was learned: one strength, or a search for one on a validation statistic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from pydantic import Field, PositiveFloat

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, Run
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.training.probe import Probe
from expunge.training.settings import StopSettings


class StrengthConfig(MethodConfig):
    """How strongly to subtract; a method gives ``strength`` its own default."""

    strength: float = Field(1.0, gt=0, description="how much of what was learned is subtracted")
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


def search_strength(
    task: Task, at: Callable[[float], None], config: StrengthConfig, request: DeletionRequest, run: Run
) -> tuple[dict[str, Any], Cost]:
    """Measure strengths on a seeded subset of the sets until one is too much, and choose.

    The rules of ``run.train.stop`` judge them: its forget target and its retain ceiling.

    Args:
        task: the model.
        at: brings the model to a strength; 0 is the model before unlearning.
        config: the strengths to try.
        request: gives the sets.
        run: gives the rules, the seed and the oracle.

    Returns:
        What was tried and chosen, as plain values, and what that cost. The model is left at the last strength tried.

    Raises:
        BadInput: no strength keeps the retain NLL below the ceiling.
    """
    stop = run.train.stop if run.train.stop.every else StopSettings(probe_size=run.train.stop.probe_size)
    sets = {role: task.encode(examples) for role, examples in request.sets().items()}
    if stop.forget_target != "holdout":
        sets.pop("holdout", None)
    probe = Probe(sets, stop, run.train.seed, run.oracle, task.outcomes, task.unit)
    rise = min(config.retain_rise, stop.retain_ceiling or config.retain_rise)
    before, spent = task.cost.snapshot(), Cost()
    tried: list[Tried] = []
    with spent.measured():
        for strength in [0.0, *sorted(set(config.strengths))]:
            at(strength)
            point = probe.look(task, len(tried))
            assert point.forget_nll is not None
            assert point.retain_nll is not None
            tried.append(Tried(strength, point.forget_nll, point.retain_nll))
            ceiling = tried[0].retain_nll + rise
            if strength and not point.retain_nll <= ceiling:
                break
    cost = task.cost - before
    cost.seconds, cost.peak_bytes = spent.seconds, spent.peak_bytes
    best = choose_strength(tried[1:], ceiling, probe.target)
    if best is None:
        start, least = tried[0], tried[1]
        what = f"raise the retain NLL by more than {rise:g} {probe.unit}: already {least.strength:g} takes it"
        what += f" from {start.retain_nll:.3f} to {least.retain_nll:.3f}"
        raise BadInput(Problem("strengths", what, "try smaller ones, or raise retain_rise"))
    found = {"retain_ceiling": ceiling, "forget_target": probe.target, "tried": [asdict(t) for t in tried]}
    return {"chosen": best.strength, **found}, cost


def check_strengths(config: StrengthConfig, stop: StopSettings) -> None:
    """Refuse rules to stop by that have nothing to judge.

    Raises:
        BadInput: a forget target or a retain ceiling is set and there are no strengths to choose among.
    """
    if not stop.every or config.strengths:
        return
    rules = {"forget_target": stop.forget_target != "none", "retain_ceiling": stop.retain_ceiling is not None}
    what = "has nothing to judge: training learns the forget set, and one strength is given"
    problems = [Problem(f"stop.{name}", what, "give strengths to choose among") for name, on in rules.items() if on]
    if problems:
        raise BadInput(problems)
