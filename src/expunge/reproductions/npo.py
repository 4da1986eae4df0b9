"""NPO: the model drifts like the logarithm of the steps, and keeps more than gradient ascent at equal forgetting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.methods.language.npo import npo_loss
from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.reproductions.matched import at_forgetting, compare, forgetting_path
from expunge.reproductions.world import small_world

STEPS = (250, 500, 1000, 2000, 4000)
RATE = 0.02
LEARNING_STEPS = 10_000

LEVEL = 0.3
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ga": ("gradient_ascent", {}),
    "npo_0.1": ("npo", {"beta": 0.1, "retain": "none"}),
    "npo_1": ("npo", {"beta": 1.0, "retain": "none"}),
    "grad_diff": ("grad_diff", {}),
    "npo_rt": ("npo", {"beta": 0.1}),
    # About as many as an answer has tokens: its forget term sums over them, GradDiff's averages.
    "npo_rt_weight_10": ("npo", {"beta": 0.1, "retain_weight": 10.0}),
}

Loss = Callable[[Tensor], Tensor]


class NPOReproduction(Reproduction):
    """The drift law on a random-feature model like the paper's synthetic one; utility on small language models.

    First the paper's theorem. A logistic model over 128 random ReLU features learns two clouds of points with opposite
    label rules; one cloud is to be forgotten. Full-batch descent on the forgetting loss alone then moves it away from
    where it was. Drift is measured as in the theorem, in the norm of the forget set's feature covariance.

    Then the paper's comparison. A small language model forgets a tenth of the people it knows, by gradient ascent and
    NPO without retain data, and by GradDiff and NPO+RT with it. Each path is read where the mean probability of the
    answers to forget falls below ``LEVEL``; kept is the mean probability of the answers about everybody else.
    """

    id = "npo"
    title = "drift over steps, and what is kept at equal forgetting, beside gradient ascent"
    paper = "Zhang et al. 2024, Negative Preference Optimization, arXiv:2404.05868"
    claim = "NPO collapses exponentially more slowly than gradient ascent, and keeps more at equal forgetting"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        law = drift_law(seed, STEPS[1:4], LEARNING_STEPS // 2) if bench.quick else drift_law(seed)
        return {**law, **kept_at_equal_forgetting(seed, bench)}

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        steps = [t for t in STEPS if f"ga_drift_{t}" in runs[0]]
        first, second, half, last = steps[0], steps[1], steps[-2], steps[-1]

        def drift(method: str, step: int) -> float:
            return mean(runs, f"{method}_drift_{step}")

        ratios = {m: [run[f"{m}_drift_{last}"] / run[f"{m}_drift_{half}"] for run in runs] for m in ("ga", "npo")}
        gains = {m: (drift(m, last) - drift(m, half)) / (drift(m, second) - drift(m, first)) for m in ("ga", "npo")}
        doublings = len(steps) - 2
        ga, npo = mean(runs, "ga_kl_to_retrained"), mean(runs, "npo_kl_to_retrained")
        return [
            Check(
                "the drift of gradient ascent is linear: twice the steps, twice the drift",
                min(ratios["ga"]) > 1.8,
                f"from {half} to {last} steps it grows by {_times(ratios['ga'])}",
            ),
            Check(
                "the drift of NPO is not: twice the steps add little",
                max(ratios["npo"]) < 1.15,
                f"from {half} to {last} steps it grows by {_times(ratios['npo'])}",
            ),
            Check(
                "it is at most logarithmic: what each doubling of the steps adds does not grow",
                gains["npo"] < 1.25 and gains["ga"] > 0.8 * 2**doublings,
                f"the last doubling adds {gains['npo']:.2f} times what the first does for NPO, {gains['ga']:.1f} times "
                f"for gradient ascent ({2**doublings} if linear)",
            ),
            Check(
                "NPO stays near the retrained model on what is kept",
                npo < 0.1 * ga,
                f"KL from the retrained model on kept points after {last} steps: {npo:.3g} nats for NPO, {ga:.3g} for "
                "gradient ascent",
            ),
            compare(
                "without retain data, NPO (beta 1) keeps more than gradient ascent",
                runs,
                "kept_after_npo_1",
                "kept_after_ga",
            ),
            compare(
                "with retain data, NPO+RT keeps more than GradDiff",
                runs,
                "kept_after_npo_rt",
                "kept_after_grad_diff",
                "NPO sums over an answer's tokens where GradDiff averages over them, so at equal weights its forget "
                "term outweighs the retain term (see the next check)",
            ),
            compare(
                "the same with ten times the retain weight, as answers have about ten tokens",
                runs,
                "kept_after_npo_rt_weight_10",
                "kept_after_grad_diff",
                "AdamW scales the fading of the gradient, NPO's advantage, away",
            ),
        ]


def kept_at_equal_forgetting(seed: int, bench: Workbench) -> dict[str, float]:
    """Return what each method keeps on the small world where it has forgotten to ``LEVEL``; left out if it never does.

    Args:
        seed: of the world.
        bench: where and how.
    """
    world = small_world(bench, seed, oracles=0)
    found = {}
    for name, (method, settings) in METHODS.items():
        points = forgetting_path(world, method, {**settings, "learning_rate": 1e-4}, steps=160, bench=bench, until=2.5)
        kept = at_forgetting(points, LEVEL)
        found["kept_before"] = points[0].retain_probability or 0.0
        if kept is not None:
            found[f"kept_after_{name}"] = kept
    return found


def drift_law(seed: int, steps: Sequence[int] = STEPS, learning_steps: int = LEARNING_STEPS) -> dict[str, float]:
    """Forget in the random-feature model with gradient ascent and with NPO (beta 1, one token per answer).

    Args:
        seed: of the features, points and label rule.
        steps: when to look, in order.
        learning_steps: of the original and of the retrained model.

    Returns:
        ``<method>_drift_<step>``: distance from the original model in the norm of the forget features' second moment;
        ``<method>_kl_to_retrained``: KL in nats from the retrained model on kept points at the last step;
        ``<method>_kept_accuracy``; and the accuracies of the original.
    """
    dim, features, kept, gone = 16, 128, 1000, 200
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    projection, rule = normal(features, dim) / dim**0.5, normal(dim)
    kept_points, gone_points = normal(kept, dim) - 1, normal(gone, dim) + 1
    kept_signs, gone_signs = torch.sign((kept_points + 1) @ rule), -torch.sign((gone_points - 1) @ rule)
    phi, psi = F.relu(kept_points @ projection.T), F.relu(gone_points @ projection.T)

    def nll(weights: Tensor, inputs: Tensor, signs: Tensor) -> Tensor:
        return F.softplus(-signs * (inputs @ weights))

    everything, signs = torch.cat([phi, psi]), torch.cat([kept_signs, gone_signs])
    start = torch.zeros(features, dtype=torch.float64)
    original = descend(start, lambda a: nll(a, everything, signs).mean(), [learning_steps])[0]
    retrained = descend(start, lambda a: nll(a, phi, kept_signs).mean(), [learning_steps])[0]
    reference = nll(original, psi, gone_signs)
    losses: dict[str, Loss] = {
        "ga": lambda a: -nll(a, psi, gone_signs).mean(),
        "npo": lambda a: npo_loss(nll(a, psi, gone_signs), reference, 1.0).mean(),
    }

    def accuracy(weights: Tensor, inputs: Tensor, signs: Tensor) -> float:
        return float((torch.sign(inputs @ weights) == signs).double().mean())

    found = {
        "original_kept_accuracy": accuracy(original, phi, kept_signs),
        "original_forget_accuracy": accuracy(original, psi, gone_signs),
    }
    for name, loss in losses.items():
        path = descend(original, loss, steps)
        found |= {
            f"{name}_drift_{step}": float((psi @ (weights - original)).square().mean().sqrt())
            for step, weights in zip(steps, path, strict=True)
        }
        found[f"{name}_kl_to_retrained"] = float(bernoulli_kl(phi @ retrained, phi @ path[-1]).mean())
        found[f"{name}_kept_accuracy"] = accuracy(path[-1], phi, kept_signs)
    return found


def descend(start: Tensor, loss: Loss, steps: Sequence[int], rate: float = RATE) -> list[Tensor]:
    """Return the weights of plain gradient descent after each of ``steps`` steps, which are in order."""
    weights, seen = start, []
    for step in range(1, steps[-1] + 1):
        weights = weights.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(weights), weights)
        weights = weights.detach() - rate * gradient
        if step in steps:
            seen.append(weights)
    return seen


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) in nats of two binary distributions given by their logits, elementwise."""
    p = torch.sigmoid(p_logits)
    yes = F.logsigmoid(p_logits) - F.logsigmoid(q_logits)
    no = F.logsigmoid(-p_logits) - F.logsigmoid(-q_logits)
    return p * yes + (1 - p) * no


def _times(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f} times over seeds" if len(ratios) > 1 else f"{ratios[0]:.2f} times"
