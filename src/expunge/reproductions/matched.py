"""Compare methods where they have forgotten equally much: a path per method, read at the same level of forgetting.

A method that is stopped early keeps more. So no two are compared at a fixed step: each leaves a path of (forgotten,
kept) from step to step, and paths are compared where they cross the same probability of the answers to forget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from expunge.methods.base import Unlearned
from expunge.methods.run import unlearn
from expunge.reports.leaderboard import over_seeds
from expunge.reproductions.base import Check, Workbench
from expunge.reproductions.world import World
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.probe import ProbePoint

# AdamW as in the demo; constant, so that every step of a path counts alike.
TRAINING: Mapping[str, Any] = {
    "learning_rate": 5e-4, "batch_size": 32, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0,
}  # fmt: skip


def forgetting_path(
    world: World,
    method: str,
    settings: Mapping[str, Any],
    *,
    steps: int,
    bench: Workbench,
    request: DeletionRequest | None = None,
    until: float = 6.0,
) -> list[ProbePoint]:
    """Forget step by step and look after each.

    Args:
        world: the model to start from; it is left as it is.
        method: id of the method.
        settings: of the method and of training, on top of ``TRAINING``.
        steps: at most so many.
        bench: hears of the steps; a quick run looks at fewer examples.
        request: the world's own by default.
        until: stop when the forget NLL has reached this many nats per token.

    Returns:
        One point per step, the first before any; the probabilities are means over examples of exp(-NLL per token).
    """
    bench.progress.stage(f"forgetting with {method}")
    stop = {"every": 1, "probe_size": 32 if bench.quick else 64, "forget_target": until}
    outcome = _forget(world, method, {**settings, "stop": stop}, steps, bench, request)
    assert outcome.training is not None
    return outcome.training.probes


def model_at_forgetting(
    world: World,
    method: str,
    settings: Mapping[str, Any],
    points: Sequence[ProbePoint],
    level: float,
    *,
    bench: Workbench,
    request: DeletionRequest | None = None,
) -> CausalLM | None:
    """Return the model behind a path at the first step below a level of forgetting; arguments as of the path.

    The steps up to there are done once more: they are the same, as everything random follows from the seed.

    Returns:
        The model, or None where the path never gets there.
    """
    below = next((p.step for p in points if p.forget_probability is not None and p.forget_probability < level), None)
    if not below:
        return None
    model = _forget(world, method, settings, below, bench, request).model
    assert isinstance(model, CausalLM)
    return model


def _forget(
    world: World,
    method: str,
    settings: Mapping[str, Any],
    steps: int,
    bench: Workbench,
    asked: DeletionRequest | None,
) -> Unlearned:
    return unlearn(
        world.original,
        asked or world.request,
        method,
        settings={**TRAINING, "epochs": steps, "max_steps": steps, "seed": world.seed, **settings},
        progress=bench.progress.step,
    )


def at_forgetting(points: Sequence[ProbePoint], level: float, name: str = "retain_probability") -> float | None:
    """Return a number of the path where the answers to forget first become less probable than ``level``.

    Args:
        points: a path.
        level: of ``forget_probability``.
        name: the number wanted; interpolated linearly between the two steps around the crossing.

    Returns:
        The number, or None where the path never gets there.
    """
    for before, after in pairwise(points):
        p, q = before.forget_probability, after.forget_probability
        x, y = getattr(before, name), getattr(after, name)
        if p is not None and q is not None and x is not None and y is not None and p >= level > q:
            return float(x + (y - x) * (p - level) / (p - q))
    return None


def compare(claim: str, runs: Sequence[Mapping[str, float]], more: str, less: str, otherwise: str = "") -> Check:
    """Check that one number is above another in every seed.

    Args:
        claim: what is checked.
        runs: the numbers of each seed.
        more: name of the number that should be higher.
        less: name of the other.
        otherwise: the likely reason, said if it does not hold.
    """
    pairs = [(run[more], run[less]) for run in runs if more in run and less in run]
    if len(pairs) < len(runs):
        return Check(claim, False, f"{len(runs) - len(pairs)} of {len(runs)} seeds did not reach the level")
    differences = [a - b for a, b in pairs]
    found = over_seeds(differences)
    interval = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    above = sum(d > 0 for d in differences)
    detail = f"difference {found.value:+.3f}{interval}, above 0 in {above} of {len(differences)} seeds"
    holds = above == len(differences)
    return Check(claim, holds, detail if holds or not otherwise else f"{detail}; {otherwise}")
