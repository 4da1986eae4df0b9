"""Worst-case forget sets: what the search finds, what it does to methods, and whether it carries over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from expunge.audits.classification.average_gap import average_gap
from expunge.benchmarks.predictor_measures import measure_classifier
from expunge.data import known_sets
from expunge.forget_sets.select import select_forget_set
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.requests.request import DeletionRequest
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

SHARE = 0.1
NAMES = tuple("0123456789")
TRAINING: Mapping[str, Any] = {
    "epochs": 60, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine",
}  # fmt: skip
QUICK: Mapping[str, Any] = {"iterations": 2, "unlearn_epochs": 1}
# Set -> how it is chosen; the widths of a network to which sets must carry over.
SETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "random": ("random", {}),
    "worst": ("worst_case", {}),
    "unrolled": ("worst_case", {"form": "unrolled", "iterations": 5}),
    "easiest": ("easiest", {}),
    "margin": ("margin", {}),
}
WIDTHS, OTHER_WIDTHS = (256, 256), (48, 48, 48)
UNLEARNING: Mapping[str, Any] = {"epochs": 5, "batch_size": 64, "warmup": 0.0, "schedule": "constant"}
# Learning rates that came closest to retraining on a random set of a seed that is not among these, of 1e-4, 3e-4, 1e-3
# and 3e-3 for each method: tuned where the field tunes, then confronted with other sets.
TRAINED: Mapping[str, Mapping[str, Any]] = {
    "finetune": {"learning_rate": 3e-3},
    "cf_k": {"learning_rate": 3e-3},
    "scrub": {"learning_rate": 3e-3, "passes": 5},
}
RELABELLED: Mapping[str, Mapping[str, Any]] = {
    "random_label": {"learning_rate": 1e-3},
    "boundary_shrink": {"learning_rate": 3e-4},
    "boundary_expand": {"learning_rate": 1e-3},
    "salun": {"learning_rate": 3e-3},
}
METHODS = {**TRAINED, **RELABELLED}


class WorstCaseReproduction(Reproduction):
    """Digits with pixel noise (1200 for training), an MLP, and a tenth of them to forget, chosen in five ways.

    At random; by the bi-level search with steps along signs, and with the gradient taken through all steps; the same
    search turned round (easiest); and by the largest margin, a control that costs one forward pass. A model is
    retrained without each set, and seven methods forget it: three that train on what is kept and four that train on
    false labels, with the settings that were best on random sets. Each is compared, by the average gap in UA, RA, TA
    and MIA-efficacy, with the model retrained without the same set. Then a deeper and narrower network is retrained
    without the sets that the first one chose.
    """

    id = "worst_case"
    title = "forget sets chosen to be hard beside random ones: retraining, methods, and another network"
    paper = "Fan et al. 2024, Challenging Forgets, arXiv:2403.07362"
    claim = (
        "Bi-level search finds forget sets that even a retrained model predicts, also one of another shape, at no cost "
        "in accuracy; methods that train on what is kept come closer to retraining on them, relabelling ones collapse"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        train, test = known_sets.digits("train", seed=seed), known_sets.digits("test", seed=seed)
        train = train.select(range(300)) if bench.quick else train
        training = {**TRAINING, "epochs": 4} if bench.quick else TRAINING
        bench.progress.stage("training the original")
        original = trained(WIDTHS, DeletionRequest(test, train), training, seed)
        found: dict[str, float] = {}
        requests: dict[str, DeletionRequest] = {}
        for name, (selector, settings) in SETS.items():
            bench.progress.stage(f"choosing: {name}")
            searched = selector in ("worst_case", "easiest")
            chosen = {"share": SHARE, **settings, **(QUICK if bench.quick and searched else {})}
            requests[name] = select_forget_set(
                train, selector, original, settings=chosen, unseen=test, seed=seed
            ).request
        found["overlap_of_forms"] = overlap(requests["worst"], requests["unrolled"])
        found["overlap_with_margin"] = overlap(requests["worst"], requests["margin"])
        found["kept_by_reference"] = self._reference(train, original, seed, bench.quick)
        for name, request in requests.items():
            bench.progress.stage(f"forgetting: {name}")
            oracle = measure_classifier(trained(WIDTHS, request, training, seed + 100), request, test, seed)
            other = measure_classifier(trained(WIDTHS, request, training, seed + 200), request, test, seed)
            found |= {f"retrain_{key}_{name}": value for key, value in oracle.items()}
            found[f"gap_other_seed_{name}"] = average_gap(other, oracle)
            if name in ("unrolled", "margin"):
                continue
            for method, settings in METHODS.items():
                given = {**UNLEARNING, **settings, "seed": seed, **({"epochs": 1} if bench.quick else {})}
                if "passes" in given and bench.quick:
                    given["passes"] = 1
                model = unlearn(original, request, method, settings=given).model
                assert isinstance(model, Predictor)
                record = measure_classifier(model, request, test, seed)
                found[f"gap_{method}_{name}"] = average_gap(record, oracle)
                found[f"ua_{method}_{name}"] = record["ua"]
        bench.progress.stage("another network")
        for name in ("random", "worst"):
            other_net = trained(OTHER_WIDTHS, requests[name], training, seed + 300)
            found[f"transfer_ua_{name}"] = measure_classifier(other_net, requests[name], test, seed)["ua"]
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        def pair(key: str, name: str = "worst") -> str:
            chosen, drawn = (_range(column(runs, f"{key}_{one}")) for one in (name, "random"))
            return f"{chosen} against {drawn} on random sets"

        def below(key: str, name: str) -> bool:
            return all(run[f"{key}_{name}"] < run[f"{key}_random"] for run in runs)

        kept = [run["retrain_ta_worst"] - run["retrain_ta_random"] for run in runs]
        checks = [
            Check(
                "a model retrained without the worst-case set still predicts it: lower UA and MIA in every seed",
                below("retrain_ua", "worst") and below("retrain_mia", "worst"),
                f"UA {pair('retrain_ua')}; MIA-efficacy {pair('retrain_mia')}. The largest margins, one forward "
                f"pass, give UA {_range(column(runs, 'retrain_ua_margin'))}; "
                f"{mean(runs, 'overlap_with_margin'):.0%} of them are in the set that was searched",
            ),
            Check(
                "leaving the worst-case set out costs no accuracy: TA not below that of random sets, on average",
                sum(kept) / len(kept) >= 0,
                f"TA {pair('retrain_ta')}",
            ),
            Check(
                "with the gradient through all steps of unlearning, the same comes out: UA below random sets' in every "
                "seed",
                below("retrain_ua", "unrolled"),
                f"UA {pair('retrain_ua', 'unrolled')}; {mean(runs, 'overlap_of_forms'):.0%} of the set is what steps "
                "along signs find",
            ),
            Check(
                "turned round, the search finds what is easiest to forget: UA above random sets' in every seed",
                all(run["retrain_ua_easiest"] > run["retrain_ua_random"] for run in runs),
                f"UA {pair('retrain_ua', 'easiest')}",
            ),
            Check(
                "methods that train on what is kept come closer to retraining on the worst-case set, each on average",
                all(mean(runs, f"gap_{m}_worst") < mean(runs, f"gap_{m}_random") for m in TRAINED),
                _gaps(runs, TRAINED),
            ),
        ]
        detail = _gaps(runs, RELABELLED)
        spared = [m for m in RELABELLED if mean(runs, f"gap_{m}_worst") <= mean(runs, f"gap_{m}_random")]
        if spared:
            shown = ", ".join(f"{m} (UA {mean(runs, f'ua_{m}_worst'):.1f})" for m in spared)
            detail += (
                f"; {shown}: likely because the step that was best on random sets is too small to overturn labels that "
                "the model is so sure of"
            )
        name = "methods that train on false labels fall further from retraining on the worst-case set, each on average"
        carried = below("transfer_ua", "worst")
        return [
            *checks,
            Check(name, not spared, detail),
            Check(
                "the set is as hard for another network, which did not choose it: UA below random sets' in every seed",
                carried,
                f"UA of a deeper, narrower network {pair('transfer_ua')}",
            ),
        ]

    def _reference(self, train: Dataset, original: Predictor, seed: int, quick: bool) -> float:
        """Return the share of the reference's random start that is left at the end of its search."""
        drawn = select_forget_set(train, "random", settings={"share": SHARE}, seed=seed).request
        settings = {"share": SHARE, "parity": True, "rate": 1e-3, **(QUICK if quick else {"iterations": 5})}
        return overlap(drawn, select_forget_set(train, "worst_case", original, settings=settings, seed=seed).request)


def trained(widths: Sequence[int], request: DeletionRequest, training: Mapping[str, Any], seed: int) -> Predictor:
    """Return an MLP trained on what a request retains.

    Args:
        widths: of its hidden layers.
        request: its retain set is trained on.
        training: settings.
        seed: of weights and batches.
    """
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 64, "outputs": 10, "hidden": list(widths)})
    start = Predictor.of_images(factory.make(seed), NAMES, factory=factory, channels=1)
    model = unlearn(start, request, "retrain", settings={**training, "seed": seed}).model
    assert isinstance(model, Predictor)
    return model


def overlap(one: DeletionRequest, other: DeletionRequest) -> float:
    """Return the share of one forget set that is in the other."""
    return len(set(one.forget["id"]) & set(other.forget["id"])) / len(one.forget)


def _gaps(runs: Sequence[Mapping[str, float]], methods: Mapping[str, Any]) -> str:
    each = [f"{m} {mean(runs, f'gap_{m}_worst'):.1f} against {mean(runs, f'gap_{m}_random'):.1f}" for m in methods]
    noise = mean(runs, "gap_other_seed_worst"), mean(runs, "gap_other_seed_random")
    return f"average gap {', '.join(each)} on random sets; of another retrained model {noise[0]:.1f} and {noise[1]:.1f}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
