"""Corrective unlearning: of corrupted training data a tenth is identified; retraining against SSD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from expunge.benchmarks.corrective_cell import CANDIDATES, ORIGINAL, TRAINING, Corruption, Setting, run_setting
from expunge.reproductions.base import Check, Reproduction, Workbench, mean

TENTH, ALL = 0.1, 1.0
METHODS = ("retrain", "finetune", "ssd")
# What counts as removed: half of the way from the original to the model that saw none of the corrupted examples.
REMOVED = 0.5
# What counts as left: a quarter of it.
LEFT = 0.25
AFFORDABLE = 5.0


class CorrectiveReproduction(Reproduction):
    """On noisy digits of 8 x 8 with a small network: a poison (a patch of 2 x 2 that means "0" in 60 of 1,200 images)
    and a label confusion (the labels of 100 threes and fives swapped).

    Every method is told of a tenth, or of all, of the corrupted examples. Acc_corr is the accuracy by clean labels on
    test images with the patch whose class is not 0, or on test images of the two classes; Acc_retain that on the rest.
    SSD's alpha and lambda are chosen by the accuracy on what is not identified, as labelled, and by how many identified
    examples still get the wrong label. The gold standard is retraining without all corrupted examples.
    """

    id = "corrective"
    title = "corrupted training data of which a tenth is identified: retraining without it, against SSD"
    paper = "Goel et al. 2024, Corrective Machine Unlearning, arXiv:2402.14015"
    claim = (
        "Retraining without the identified part of a poison leaves it unless nearly all is identified, SSD removes it "
        "from a tenth; on confused labels SSD fails"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        training: Mapping[str, Any] = {**TRAINING, **({"epochs": 3} if bench.quick else {})}
        methods = {name: CANDIDATES[name][: 2 if bench.quick else None] for name in METHODS}
        methods["retrain"] = [training]
        found: dict[str, float] = {}
        for corruption in get_args(Corruption):
            bench.progress.stage(f"correcting {corruption}")
            setting = Setting("digits", None, corruption, seed, 400 if bench.quick else None, tuple(training.items()))
            for record in run_setting(setting, (TENTH, ALL), methods, bench.folder / corruption):
                name = f"{corruption}_{record['method']}"
                if record["method"] != ORIGINAL:
                    name += "_tenth" if record["share"] == TENTH else "_all"
                found |= {
                    f"{name}_{key}": record[key]
                    for key in ("acc_corr", "acc_retain", "attack_success")
                    if key in record
                }
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        def way(run: Mapping[str, float], name: str) -> float:
            """How far towards the gold standard; from the original's 0 to its 1."""
            start, gold = run["poison_original_acc_corr"], run["poison_retrain_all_acc_corr"]
            return (run[f"poison_{name}_acc_corr"] - start) / (gold - start) if gold != start else 0.0

        retrained, ssd = ([way(run, f"{name}_tenth") for run in runs] for name in ("retrain", "ssd"))
        gold = [run["poison_retrain_all_acc_corr"] / run["poison_retrain_all_acc_retain"] for run in runs]
        lost = [run["poison_original_acc_retain"] - run["poison_ssd_tenth_acc_retain"] for run in runs]
        confused = [run["confusion_ssd_all_acc_corr"] - run["confusion_retrain_all_acc_corr"] for run in runs]
        corr = {
            name: mean(runs, f"poison_{name}_acc_corr")
            for name in ("original", "retrain_tenth", "ssd_tenth", "retrain_all", "finetune_all")
        }
        return [
            Check(
                "retraining without the identified tenth leaves the poison",
                max(retrained) < LEFT,
                f"Acc_corr {corr['retrain_tenth']:.1f} %, the original {corr['original']:.1f} %, retrained without all "
                f"{corr['retrain_all']:.1f} %",
            ),
            Check(
                "SSD removes it when told of a tenth",
                min(ssd) > REMOVED,
                f"Acc_corr {corr['ssd_tenth']:.1f} %, {_range(ssd)} of the way from the original to the gold standard",
            ),
            Check(
                "SSD corrects more than retraining in every seed",
                all(a > b for a, b in zip(ssd, retrained, strict=True)),
                f"{_range(ssd)} of the way against {_range(retrained)}",
            ),
            Check(
                f"SSD costs at most {AFFORDABLE:g} points on clean images",
                max(lost) <= AFFORDABLE,
                f"loses {_range(lost)} points of Acc_retain; the importance of a handful of examples is read from few "
                "gradients, so that weights are dampened that others need too",
            ),
            Check(
                "without all corrupted examples retraining is nearly as right on triggered images as on clean ones",
                min(gold) > 0.75,
                f"{_range(gold)} of the accuracy on clean images; fine-tuning without them reaches "
                f"{corr['finetune_all']:.1f} %",
            ),
            Check(
                "on confused labels SSD stays behind retraining even when told of all",
                max(confused) < 0,
                f"{_range(confused)} points of Acc_corr: it dampens what tells the two classes from all others",
            ),
        ]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
