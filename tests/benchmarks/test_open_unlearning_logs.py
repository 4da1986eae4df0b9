"""Results against their own per-example values: what agrees, what does not, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from expunge.benchmarks.open_unlearning_folder import Logs
from expunge.benchmarks.open_unlearning_logs import LogRow, check_logs, finite
from expunge.benchmarks.open_unlearning_metrics import UTILITY


def mean_metric(values: list[Any], key: str = "prob") -> dict[str, Any]:
    known = [v for v in values if v is not None]
    return {"agg_value": float(np.mean(known)), "value_by_index": {str(i): {key: v} for i, v in enumerate(values)}}


def attack(forget: list[float], holdout: list[float]) -> dict[str, Any]:
    area = float(roc_auc_score([0] * len(forget) + [1] * len(holdout), forget + holdout))
    return {
        "forget": mean_metric(forget, "score"),
        "holdout": mean_metric(holdout, "score"),
        "auc": area,
        "agg_value": area,
    }


def rows(metrics: dict[str, Any], suite: str = "TOFU", summary: Any = None, retained: Any = None) -> dict[str, LogRow]:
    other = Logs(Path("r"), suite, retained) if retained else None
    return {row.metric: row for row in check_logs(Logs(Path("x"), suite, metrics, summary or {}), other)}


def test_averages() -> None:
    found = rows(
        {"forget_Q_A_Prob": mean_metric([0.1, 0.2, 0.6]), "ra_Q_A_Prob": {**mean_metric([0.5, 0.5]), "agg_value": 0.4}}
    )
    good, bad = found["forget_Q_A_Prob"], found["ra_Q_A_Prob"]
    assert good.agrees
    assert good.follows.value == pytest.approx(0.3)
    assert good.follows.low is not None
    assert good.follows.low < 0.3
    assert bad.agrees is False
    assert bad.follows.value == pytest.approx(0.5)


def test_truth_ratios_are_averaged_as_scores() -> None:
    forget = {"agg_value": np.mean([0.5, 0.25]), "value_by_index": {"0": {"score": 0.5}, "1": {"score": 4.0}}}
    retain = {"agg_value": 0.25, "value_by_index": {"0": {"score": 0.5}, "1": {"score": 4.0}}}
    found = rows({"forget_truth_ratio": forget, "retain_Truth_Ratio": retain})
    assert found["forget_truth_ratio"].agrees
    assert found["retain_Truth_Ratio"].agrees


def test_areas_and_privleak() -> None:
    area = attack([1.0, 2.0, 3.0], [2.5, 3.5])
    value = 100 * (0.5 - area["agg_value"]) / (0.5 + 1e-10)
    found = rows({"mia_min_k": area, "privleak": {"agg_value": value}})
    assert found["mia_min_k"].agrees
    assert found["privleak"].agrees
    assert "AUC of 0.5 and not with a retained model" in found["privleak"].notes[0]
    # Beside the retained model's results, the same number does not follow, and the one that does is told.
    retained = {"mia_min_k": attack([2.0, 3.0], [1.0, 2.5])}
    found = rows({"mia_min_k": area, "privleak": {"agg_value": value}}, retained=retained)
    other = retained["mia_min_k"]["agg_value"]
    assert found["privleak"].agrees is False
    right = 100 * (other - area["agg_value"]) / (1 - other)
    assert f"against the retained model's {other:.3f} it is {right:.1f}" in found["privleak"].notes


def test_collapse_is_named() -> None:
    low = attack([9.0] * 4, [1.0] * 4)
    found = rows({"mia_min_k": low, "privleak": {"agg_value": 100.0}})
    assert any("collapse" in note for note in found["privleak"].notes)


def test_forget_quality() -> None:
    mine, other = (mean_metric(list(np.linspace(low, 1, 30)), "score") for low in (0.1, 0.5))
    mine["agg_value"] = other["agg_value"] = None
    from scipy.stats import ks_2samp

    p = ks_2samp(np.linspace(0.1, 1, 30), np.linspace(0.5, 1, 30)).pvalue
    metrics = {"forget_truth_ratio": {**mine, "agg_value": 0.5}, "forget_quality": {"agg_value": float(p)}}
    assert rows(metrics, retained={"forget_truth_ratio": other})["forget_quality"].agrees
    metrics["forget_quality"] = {"agg_value": None}
    row = rows(metrics)["forget_quality"]
    assert (row.logged, row.agrees) == (None, None)
    assert "retain_logs_path" in row.notes[0]


def test_missing_and_broken_values() -> None:
    gap = mean_metric([0.1, None, 0.3])
    nan = {**mean_metric([0.1, 0.3]), "value_by_index": {"0": {"prob": 0.1}, "1": {"prob": float("nan")}}}
    found = rows({"ra_Q_A_Prob": gap, "wf_Q_A_Prob": nan, "forget_Q_A_gibberish": {"agg_value": 0.2}})
    assert found["ra_Q_A_Prob"].agrees
    assert "1 of 3 rows have no value" in found["ra_Q_A_Prob"].notes[0]
    assert "shifts the rest" in found["ra_Q_A_Prob"].notes[0]
    assert found["wf_Q_A_Prob"].agrees is None
    assert "row 1" in found["wf_Q_A_Prob"].notes[0]
    assert found["forget_Q_A_gibberish"].follows.note == "no per-example values"


def test_one_metric_without_values_does_not_hide_what_follows_from_others() -> None:
    parts = {name: {"agg_value": 0.5} for name in UTILITY}
    found = rows(
        {**parts, "model_utility": {"agg_value": 0.5}, "forget_truth_ratio": {"agg_value": 0.5},
         "forget_quality": {"agg_value": 0.5}},
        retained={"forget_truth_ratio": {"agg_value": 0.5}},
    )  # fmt: skip
    assert found["model_utility"].agrees
    assert found["forget_quality"].agrees is None


def test_ratios_that_are_averaged_as_they_are() -> None:
    values = mean_metric([0.3, 0.7], "score")
    row = rows({"retain_Truth_Ratio": {**values, "agg_value": 0.5}})["retain_Truth_Ratio"]
    assert row.agrees
    values = mean_metric([0.3, 0.8], "score")
    row = rows({"retain_Truth_Ratio": values})["retain_Truth_Ratio"]
    assert row.agrees
    assert "aggregator prob_mean" in row.notes[0]


def test_attacks_without_values() -> None:
    side = {"value_by_index": {"0": None}}
    row = rows({"mia_loss": {"agg_value": 0.5, "forget": side, "holdout": {"value_by_index": None}}})["mia_loss"]
    assert row.follows.note == "no per-example values"


def test_rows_that_are_null_do_not_stop_the_rest() -> None:
    broken = {"agg_value": 0.5, "value_by_index": {"0": None, "1": {"score": 0.5}}}
    found = rows(
        {"forget_truth_ratio": broken, "forget_Q_A_Prob": mean_metric([0.1])}, retained={"forget_truth_ratio": broken}
    )
    assert found["forget_Q_A_Prob"].agrees
    assert "1 of 2 rows" in found["forget_truth_ratio"].notes[0]


def test_empty_generations_and_stemming() -> None:
    said = {"0": {"rougeL_recall": 0.0, "rougeL_f1": 0.0, "generation": " .", "ground_truth": "running dogs"},
            "1": {"rougeL_recall": 0.5, "rougeL_f1": 0.5, "generation": "run",
                  "ground_truth": "running dogs"}}  # fmt: skip
    (row,) = rows({"forget_Q_A_ROUGE": {"agg_value": 0.25, "value_by_index": said}}).values()
    assert row.agrees
    assert "1 of 2 generations hold no word" in row.notes[0]
    (row,) = rows({"forget_knowmem_ROUGE": {"agg_value": 0.25, "value_by_index": said}}, "MUSE").values()
    assert "which gives 0.0000" in row.notes[1]


def test_a_summary_of_another_evaluation() -> None:
    (row,) = rows({"forget_Q_A_Prob": mean_metric([0.1])}, summary={"forget_Q_A_Prob": 0.7}).values()
    assert row.notes == ("TOFU_SUMMARY.json says 0.7",)


def test_finite() -> None:
    assert [finite(v) for v in (1, 0.5, True, "1", None, float("nan"), float("inf"))] == [1.0, 0.5, *[None] * 5]
