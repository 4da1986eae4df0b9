"""LAF: a classifier forgets without any label, nearly as well as with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.reproductions.classifier_world import RECIPE, ClassifierWorld, cifar_world, digits_world, measured
from expunge.reproductions.matched import compare

LAF: Mapping[str, Any] = {"epochs": 20, "learning_rate": 1e-3, "unlearn_rate": 0.3, "temperature": 5.0, "latent": 8}
UNSUPERVISED: Mapping[str, Mapping[str, Any]] = {
    "laf": {},
    "leave_only": {"align_weight": 0.0},
    "align_only": {"unlearn_weight": 0.0},
    "laf_tau_20": {"temperature": 20.0},
    "align_only_tau_20": {"temperature": 20.0, "unlearn_weight": 0.0},
    "parity": {"parity": True},
    "laf_repaired": {"repair_epochs": 5},
}
TUNE: Mapping[str, Any] = {**RECIPE, "schedule": "constant", "learning_rate": 1e-2}
SUPERVISED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "finetune": ("finetune", {**TUNE, "epochs": 10}),
    "neg_grad_plus": ("neg_grad_plus", {**TUNE, "epochs": 10}),
    "random_label": (
        "random_label", {**TUNE, "epochs": 30, "retain": "nll", "resample": "epoch", "forget_weight": 0.1}
    ),
}  # fmt: skip
PLACES = {"class": "a class of digits", "random": "a tenth of the digits", "pictures": "a class of pictures"}


class LAFReproduction(Reproduction):
    """Noisy digits and pictures, a network whose embedding has 64 numbers; labels are never read by LAF.

    Beside LAF stand both of its halves alone, each at the temperature of LAF and the aligning half at the paper's 20
    too, the form of the authors' code (sigmoid decoder, raw embeddings) and LAF+R, which trains the head on the labels
    of the retain set. What forgets with labels: fine-tuning, NegGrad+ and random labels. All are judged by the average
    gap to a retrained model.
    """

    id = "laf"
    title = "forgetting without labels, beside its halves alone and methods that use labels"
    paper = "Shen et al. 2024, Label-Agnostic Forgetting, arXiv:2404.00506"
    claim = "Without any label LAF forgets, keeps the rest, and comes as near to retraining as methods with labels"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        out: dict[str, float] = {}
        if not bench.quick:
            pictures = cifar_world(seed, "class", bench.data, folder=bench.shared)
            bench.progress.stage(f"pictures, seed {seed}")
            own = {name: UNSUPERVISED[name] for name in ("laf", "leave_only", "align_only")}
            label = {"random_label": ("random_label", {**SUPERVISED["random_label"][1], "epochs": 15})}
            out |= forgotten(pictures, "pictures", own, label, {})
        for scenario in ("class", "random"):
            bench.progress.stage(f"digits, {scenario}, seed {seed}")
            world = digits_world(seed, scenario, hidden=(256, 64), quick=bench.quick, folder=bench.shared)
            short = {"epochs": 3, "vae_epochs": 2} if bench.quick else {}
            out |= forgotten(world, scenario, UNSUPERVISED, SUPERVISED, short)
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        places = [place for place in PLACES if f"{place}_laf_gap" in runs[0]]
        checks = []
        for place in places:
            words = PLACES[place]
            less = [run[f"{place}_original_gap"] - run[f"{place}_laf_gap"] for run in runs]
            checks.append(
                Check(
                    f"{words}: LAF closes at least half of the gap between the original and the retrained model",
                    all(2 * run[f"{place}_laf_gap"] <= run[f"{place}_original_gap"] for run in runs),
                    f"gap {mean(runs, f'{place}_original_gap'):.1f} before, {mean(runs, f'{place}_laf_gap'):.1f} after"
                    + ("" if min(less) > 0 else "; where the retrained model is right about most of what is forgotten, "
                       "representations that leave their place overshoot it"),
                )
            )  # fmt: skip
            checks.append(
                compare(
                    f"{words}: LAF keeps more than its forgetting half alone (RA)",
                    runs, f"{place}_laf_ra", f"{place}_leave_only_ra",
                )
            )  # fmt: skip
        for place in places:
            label = [name for name in SUPERVISED if f"{place}_{name}_gap" in runs[0]]
            nearest = min(label, key=lambda name: mean(runs, f"{place}_{name}_gap"))
            ours, theirs = mean(runs, f"{place}_laf_gap"), mean(runs, f"{place}_{nearest}_gap")
            checks.append(
                Check(
                    f"{PLACES[place]}: at most 3 points farther from retraining than the nearest method with labels",
                    ours <= theirs + 3,
                    f"gap {ours:.1f} without labels, {theirs:.1f} for {nearest}",
                )
            )
        checks += [
            compare(
                "a class of digits, tau 20: LAF forgets more than its aligning half alone (UA)",
                runs, "class_laf_tau_20_ua", "class_align_only_tau_20_ua",
            ),
            compare(
                "a class of digits, tau 5: the same",
                runs, "class_laf_ua", "class_align_only_ua",
                "at this temperature the aligning half turns the forget set away by itself, and all of it is forgotten "
                "either way",
            ),
            compare(
                "a class of digits: LAF forgets more than the form of the authors' code (UA)",
                runs, "class_laf_ua", "class_parity_ua",
            ),
        ]  # fmt: skip
        return checks


def forgotten(
    world: ClassifierWorld,
    place: str,
    unsupervised: Mapping[str, Mapping[str, Any]],
    supervised: Mapping[str, tuple[str, Mapping[str, Any]]],
    more: Mapping[str, Any],
) -> dict[str, float]:
    """Return the numbers of LAF in its variants and of methods with labels.

    Args:
        world: data and models.
        place: first part of the numbers' names.
        unsupervised: variant of LAF -> settings that differ.
        supervised: name -> method and settings.
        more: settings of LAF that differ from ``LAF``.
    """
    retrained = world.retrained()
    models: dict[str, Any] = {"original": world.original, "retrained_again": world.retrained(1)}
    models |= {name: world.forget("laf", {**LAF, **more, **own}) for name, own in unsupervised.items()}
    models |= {name: world.forget(method, settings) for name, (method, settings) in supervised.items()}
    return measured(world, {"retrained": retrained, **models}, world.record(retrained), place)
