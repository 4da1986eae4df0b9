"""Model sparsity: on a pruned model the same method ends nearer to retraining, and an l1 penalty helps it along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.reproductions.classifier_world import RECIPE, ClassifierWorld, cifar_world, digits_world, measured
from expunge.reproductions.matched import compare

SPARSITY = 0.95
RULES = ("omp", "imp", "synflow")
GAMMAS = (5e-4, 1e-3, 2e-3, 4e-3)
TUNE: Mapping[str, Any] = {**RECIPE, "schedule": "constant", "learning_rate": 1e-2, "epochs": 10}
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ft": ("finetune", TUNE),
    "ga": ("gradient_ascent", {**TUNE, "learning_rate": 3e-3, "epochs": 5}),
    "iu": ("influence", {}),
    "ff": ("fisher", {}),
}
WORDS = {"ft": "fine-tuning", "ga": "gradient ascent", "iu": "influence unlearning", "ff": "Fisher forgetting"}
PLACES = {"class": "a class of digits", "random": "a tenth of the digits", "pictures": "a class of pictures"}


class ModelSparsity(Reproduction):
    """Noisy digits and pictures: the four methods of the paper on a dense model and on one that was pruned to 5 %.

    The sparse model is the dense one pruned by magnitude and trained again on everything with its mask. Each is judged
    against a model of its own kind that never saw the forget set: the dense ones by retraining, the sparse ones by
    retraining under the same mask from the initial weights that the mask was found from, as in the authors' code (with
    other initial weights that mask fits less; ``retrained_other``). The mask comes from weights that saw the forget
    set, so the gap of fine-tuning on sparse models to the dense retrained model is measured too. Pruning in rounds and
    SynFlow are tried with fine-tuning. The second half adds l1 penalties of growing weight to fine-tuning on the dense
    model.
    """

    id = "model_sparsity"
    title = "unlearning after pruning, and with an l1 penalty, beside unlearning dense models"
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv:2304.04934"
    claim = "Pruning first shrinks the gap between approximate unlearning and retraining, and so does an l1 penalty"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        out: dict[str, float] = {}
        if not bench.quick:
            pictures = cifar_world(seed, "class", bench.data, folder=bench.shared)
            bench.progress.stage(f"pictures, seed {seed}")
            tune = {**TUNE, "learning_rate": 3e-3, "epochs": 5}
            out |= compared(pictures, "pictures", {"ft": ("finetune", tune)}, {"prunable": "filters", "epochs": 15})
        for scenario in ("class", "random"):
            bench.progress.stage(f"digits, {scenario}, seed {seed}")
            world = digits_world(seed, scenario, quick=bench.quick, folder=bench.shared)
            short = {"epochs": 4} if bench.quick else {"epochs": 20}
            out |= compared(world, scenario, METHODS, short)
            out |= other_rules(world, scenario, short)
            out |= penalised(world, scenario)
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        checks = []
        for place, words in PLACES.items():
            checks += [
                compare(
                    f"{WORDS[m]}, {words}: the gap to retraining is larger on the dense model than on the sparse one",
                    runs, f"{place}_dense_{m}_gap", f"{place}_sparse_{m}_gap",
                    _kept(runs, place),
                )
                for m in METHODS if f"{place}_dense_{m}_gap" in runs[0]
            ]  # fmt: skip
        checks += [
            compare(
                f"fine-tuning, {PLACES[place]}: nearer to the dense retrained model too",
                runs, f"{place}_dense_ft_gap", f"{place}_sparse_ft_gap_to_dense",
            )
            for place in PLACES if f"{place}_dense_ft_gap" in runs[0]
        ]  # fmt: skip
        checks += [
            compare(
                f"the same with {rule}, a class of digits", runs, "class_dense_ft_gap", f"class_{rule}_ft_gap"
            )
            for rule in RULES[1:]
        ]  # fmt: skip
        gaps = {
            s: [mean(runs, f"{s}_dense_ft_gap"), *(mean(runs, _l1(s, g)) for g in GAMMAS)] for s in ("class", "random")
        }
        checks += [
            Check(
                f"the gap of fine-tuning shrinks as the l1 penalty grows, {PLACES[s]}",
                all(a > b for a, b in pairwise(found)),
                "gap " + ", ".join(f"{gap:.1f} (gamma {g:g})" for g, gap in zip((0.0, *GAMMAS), found, strict=True)),
            )
            for s, found in gaps.items()
        ]
        dense, sparse = (f"class_{kind}_retrained_ta" for kind in ("dense", "sparse"))
        checks.append(
            Check(
                f"a model with {1 - SPARSITY:.0%} of its weights is nearly as good: at most 3 points of TA less",
                max(run[dense] - run[sparse] for run in runs) <= 3,
                f"{mean(runs, dense):.1f} % dense, {mean(runs, sparse):.1f} % sparse",
            )
        )
        return checks


def pruned(world: ClassifierWorld, then: str, following: Mapping[str, Any], **more: Any) -> Any:
    """Prune the original model, train it again on everything, and let a method forget."""
    settings = {**world.recipe, "sparsity": SPARSITY, **more, "then": then, "following": dict(following)}
    return world.forget("prune", settings)


def compared(
    world: ClassifierWorld, place: str, methods: Mapping[str, tuple[str, Mapping[str, Any]]], prune: Mapping[str, Any]
) -> dict[str, float]:
    """Return the numbers of methods on the dense model and on the sparse one.

    Args:
        world: data and models.
        place: first part of the numbers' names.
        methods: name -> method and settings.
        prune: settings of the training after pruning.
    """
    retrained = world.retrained()
    reference = world.record(retrained)
    dense = {"original": world.original, "retrained": retrained, "retrained_again": world.retrained(1)}
    dense |= {name: world.forget(method, settings) for name, (method, settings) in methods.items()}
    out = measured(world, dense, reference, f"{place}_dense")
    sparse = {"retrained": sparsely_retrained(world, prune), "retrained_other": sparsely_retrained(world, prune, 100)}
    sparse |= {name: pruned(world, method, settings, **prune) for name, (method, settings) in methods.items()}
    out |= measured(world, sparse, world.record(sparse["retrained"]), f"{place}_sparse")
    out[f"{place}_sparse_ft_gap_to_dense"] = measured(world, {"ft": sparse["ft"]}, reference, "x")["x_ft_gap"]
    return out


def sparsely_retrained(world: ClassifierWorld, prune: Mapping[str, Any], other: int = 0) -> Any:
    """Return a model retrained under the mask of the pruned original, from its initial weights or from others."""
    following = {**world.recipe, "seed": world.seed + other}
    return pruned(world, "retrain", following, **{**prune, "recover_on": "none"})


def other_rules(world: ClassifierWorld, place: str, prune: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of fine-tuning on models that are pruned in rounds and by SynFlow."""
    out: dict[str, float] = {}
    for rule in RULES[1:]:
        chosen = {**prune, "rule": rule}
        again = sparsely_retrained(world, chosen)
        models = {"retrained": again, "ft": pruned(world, *METHODS["ft"], **chosen)}
        out |= measured(world, models, world.record(again), f"{place}_{rule}")
    return out


def penalised(world: ClassifierWorld, place: str) -> dict[str, float]:
    """Return the numbers of fine-tuning with l1 penalties on the dense model."""
    models = {
        f"l1_{gamma:g}": world.forget("l1_sparse", {**TUNE, "weight_decay": 0.0, "gamma": gamma}) for gamma in GAMMAS
    }
    return measured(world, models, world.record(world.retrained()), f"{place}_dense")


def _l1(place: str, gamma: float) -> str:
    return f"{place}_dense_l1_{gamma:g}_gap"


def _kept(runs: Sequence[Mapping[str, float]], place: str) -> str:
    """RA of the references, in words."""
    dense, sparse, other = (
        mean(runs, f"{place}_{name}_ra") for name in ("dense_retrained", "sparse_retrained", "sparse_retrained_other")
    )
    return (
        f"RA of the references {dense:.1f} % dense, {sparse:.1f} % sparse; under the mask from other initial weights "
        f"{other:.1f} %"
    )
