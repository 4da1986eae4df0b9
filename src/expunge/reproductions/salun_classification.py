"""SalUn on classifiers: random labels learned by the salient weights, by as many random ones, and by all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.reproductions.classifier_world import RECIPE, ClassifierWorld, best, cifar_world, digits_world, measured
from expunge.reproductions.matched import compare
from expunge.selections.saliency import Saliency, SaliencyConfig

SHARES = (0.1, 0.5)
RATES = (3e-3, 1e-2, 3e-2)
# Each example to forget meets one that is kept; the weights of the terms are those of the sets.
RELABEL: Mapping[str, Any] = {
    **RECIPE, "schedule": "constant", "epochs": 30, "retain": "nll", "resample": "epoch", "forget_weight": 0.1,
}  # fmt: skip
PLACES = {"class": "a class of digits", "random": "a tenth of the digits", "pictures": "a tenth of the pictures"}


class SalUnClassification(Reproduction):
    """Noisy digits and pictures: one objective, three masks, the average gap to a retrained model.

    Random labels are learned with the retain set by the weights that the loss of the forget set depends on most
    (``salun``), by as many weights drawn at random, and by all weights (random labelling). All arms run with the same
    learning rates, and each is read at the one with its smallest mean gap over the seeds, as the paper tunes each
    method. Masks hold a tenth of the weights, and half of them, the paper's default.
    """

    id = "salun_classification"
    title = "random labelling by salient weights, by random ones and by all"
    paper = "Fan et al. 2024, SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, arXiv:2310.12508"
    claim = (
        "With the saliency mask, random labelling ends nearer to retraining than with a random mask of the same size "
        "and than without one; weights outside the mask stay as they were"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        out: dict[str, float] = {}
        if not bench.quick:
            pictures = cifar_world(seed, "random", bench.data, folder=bench.shared)
            bench.progress.stage(f"pictures, seed {seed}")
            out |= arms(pictures, "pictures", (SHARES[1],), RATES[:2], {"epochs": 15})
        for scenario in ("class", "random"):
            bench.progress.stage(f"digits, {scenario}, seed {seed}")
            world = digits_world(seed, scenario, quick=bench.quick, folder=bench.shared)
            out |= arms(world, scenario, SHARES, RATES[1:2] if bench.quick else RATES, {})
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        checks = []
        for place, words in PLACES.items():
            for share in SHARES:
                salun, other = f"salun_{share:g}", f"random_mask_{share:g}"
                rates = [r for r in RATES if f"{place}_{salun}_{r:g}_gap" in runs[0]]
                if not rates:
                    continue
                checks.append(
                    _nearer(
                        f"{words}, {share:.0%} of the weights: nearer to retraining by salient than by random ones",
                        runs, best(runs, place, salun, rates), best(runs, place, other, rates),
                        "with a learning rate of its own, a random mask of this size has weights enough to learn the "
                        "labels, and disturbs what is kept as little",
                    )
                )  # fmt: skip
            salient = [
                f"salun_{s:g}" for s in SHARES if any(f"{place}_salun_{s:g}_{r:g}_gap" in runs[0] for r in RATES)
            ]
            rates = [r for r in RATES if f"{place}_random_label_{r:g}_gap" in runs[0]]
            if salient:
                names = [best(runs, place, arm, rates) for arm in salient]
                nearest = min(names, key=lambda name: mean(runs, name))
                checks.append(
                    _nearer(
                        f"{words}: nearer than random labelling by all weights",
                        runs, nearest, best(runs, place, "random_label", rates),
                        "with a learning rate of its own, all weights together move what is kept as little as a mask",
                    )
                )  # fmt: skip
        drift = sum(abs(value) for run in runs for name, value in run.items() if name.endswith("_moved_outside"))
        checks.append(
            Check("no weight outside the mask moves, with weight decay on", drift == 0, f"{drift:.0f} of them moved")
        )
        return checks


def arms(
    world: ClassifierWorld, place: str, shares: Sequence[float], rates: Sequence[float], more: Mapping[str, Any]
) -> dict[str, float]:
    """Return the numbers of each mask at each learning rate, and how many weights outside a mask moved.

    Args:
        world: data and models.
        place: first part of the numbers' names.
        shares: of the weights in a mask.
        rates: learning rates.
        more: settings that differ from ``RELABEL``.
    """
    retrained = world.retrained()
    reference = world.record(retrained)
    plain = {"original": world.original, "retrained": retrained, "retrained_again": world.retrained(1)}
    out = measured(world, plain, reference, place)
    moved = 0
    masks = {share: Saliency(SaliencyConfig(share=share)).build(world.original, world.request, 0) for share in shares}
    for rate in rates:
        settings = {**RELABEL, **more, "learning_rate": rate}
        models = {f"random_label_{rate:g}": world.forget("random_label", settings)}
        for share in shares:
            new = world.forget("salun", {**settings, "share": share})
            models[f"salun_{share:g}_{rate:g}"] = new
            drawn = {"select.by": "random", "select.share": share}
            models[f"random_mask_{share:g}_{rate:g}"] = world.forget("random_label", {**settings, **drawn})
            moved += outside(world.original, new, masks[share])
        out |= measured(world, models, reference, place)
    out[f"{place}_weights_moved_outside"] = moved
    return out


def outside(before: Any, after: Any, mask: Mapping[str, torch.Tensor | None]) -> int:
    """Return how many weights outside a mask differ between two models."""
    old = dict(before.named_parameters())
    count = 0
    for name, weight in after.named_parameters():
        part = mask.get(name, torch.zeros_like(weight, dtype=torch.bool))
        if part is not None:
            count += int((weight[~part] != old[name][~part]).sum())
    return count


def _nearer(claim: str, runs: Sequence[Mapping[str, float]], near: str, far: str, otherwise: str) -> Check:
    """Check that one gap is smaller than another in every seed, and say at which learning rates."""
    found = compare(claim, runs, far, near, otherwise)
    rates = " and ".join(name.split("_")[-2] for name in (near, far))
    gaps = f"gap {mean(runs, near):.1f} against {mean(runs, far):.1f} at learning rates {rates}"
    return Check(claim, found.holds, f"{gaps}; {found.detail}")
