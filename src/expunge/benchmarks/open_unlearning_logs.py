"""What can be checked of open-unlearning's results without any weights: do the numbers follow from each other?

Every ``*_EVAL.json`` holds a value per example. From these follow the averages, the areas, forget quality, model
utility and PrivLeak, the texts that ROUGE was computed on can be scored again, and every average gets an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.audits.base import Estimate
from expunge.audits.intervals import SHARE, mean_interval
from expunge.audits.language.privleak import privleak
from expunge.audits.language.rouge import is_empty, rouge_l
from expunge.audits.roc import auc_interval
from expunge.benchmarks.open_unlearning_folder import Logs
from expunge.benchmarks.open_unlearning_metrics import DEFAULT_AUC, derived, per_example

AGREES = 1e-4


@dataclass(frozen=True)
class LogRow:
    """One logged metric.

    Attributes:
        metric: its name there.
        logged: what the file says; None where it holds no number.
        follows: what follows from the file's own per-example values, with an interval where there is one.
        agrees: whether both are equal to 1e-4; None where one of them is not there.
        notes: what to know when reading it.
    """

    metric: str
    logged: float | None
    follows: Estimate
    agrees: bool | None
    notes: tuple[str, ...] = ()


def check_logs(logs: Logs, retained: Logs | None = None) -> list[LogRow]:
    """Compare every logged number with what follows from the values beside it.

    Args:
        logs: of the run.
        retained: of the model that was trained without the forget set.

    Returns:
        One row per metric, in the order of the file.
    """
    others = retained.metrics if retained is not None else None
    known = {name: dict(metric) for name, metric in logs.metrics.items() if metric.get("agg_value") is not None}
    follow = derived(known, others)
    return [_row(name, logs, follow, others) for name in logs.metrics]


def _row(name: str, logs: Logs, follow: Mapping[str, Any], retained: Mapping[str, Any] | None) -> LogRow:
    metric = logs.metrics[name]
    logged = finite(metric["agg_value"])
    notes: list[str] = []
    if name.startswith("mia_"):
        found = _area(metric)
    elif name in ("forget_quality", "model_utility", "privleak"):
        found = Estimate(finite(follow.get(name, {}).get("agg_value")))
        notes += _derived_notes(name, logged, logs, retained)
    else:
        values = per_example(name, metric)
        entries = len(metric.get("value_by_index") or {})
        broken = [index for index, value in values.items() if not math.isfinite(value)]
        if broken:
            notes.append(f"{len(broken)} value(s) are NaN or infinite, such as that of row {broken[0]}")
        elif values:
            found = mean_interval(list(values.values()), bounds=SHARE)
        if broken or not values:
            found = Estimate(None, note="no per-example values" if not values else "values that are no numbers")
        if len(values) < entries:
            gap = f"{entries - len(values)} of {entries} rows have no value"
            notes.append(
                f"{gap}; what is made of two such metrics is paired by position there, so a gap shifts the rest"
            )
        plain = _plain_mean(name, metric)
        if plain is not None and logged is not None and not _equal(logged, found.value) and _equal(logged, plain):
            found = Estimate(plain)
            notes.append("averaged as they are (aggregator prob_mean), which is no truth ratio of TOFU's definition")
        if "ROUGE" in name:
            notes += _rouge_notes(metric, logs.suite)
    summary = finite(logs.summary.get(name)) if name in logs.summary else None
    if summary is not None and logged is not None and not _equal(logged, summary):
        notes.append(f"{logs.suite}_SUMMARY.json says {summary:.4g}")
    agrees = None
    if logged is not None and found.value is not None:
        agrees = _equal(logged, found.value)
    return LogRow(name, logged, found, agrees, tuple(notes))


def _equal(logged: float, other: float | None) -> bool:
    return other is not None and abs(logged - other) <= AGREES * max(1.0, abs(logged))


def _plain_mean(name: str, metric: Mapping[str, Any]) -> float | None:
    """The mean of truth ratios without a score made of them; None for other metrics."""
    if not name.lower().endswith("truth_ratio"):
        return None
    rows = (metric.get("value_by_index") or {}).values()
    scores = [finite((row or {}).get("score")) for row in rows]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known and len(known) == len(scores) else None


def _area(metric: Mapping[str, Any]) -> Estimate:
    sides = []
    for side in ("forget", "holdout"):
        entries = (metric.get(side) or {}).get("value_by_index") or {}
        values = [(entry or {}).get("score") for entry in entries.values()]
        if not values or any(value is None or not math.isfinite(value) for value in values):
            return Estimate(None, note="no per-example values")
        sides.append(-np.array(values, dtype=float))
    return auc_interval(sides[0], sides[1])


def _derived_notes(name: str, logged: float | None, logs: Logs, retained: Mapping[str, Any] | None) -> list[str]:
    if name == "forget_quality" and logged is None:
        return ["no retained model was given (retain_logs_path), so there is no forget quality"]
    if name != "privleak" or logged is None or "mia_min_k" not in logs.metrics:
        return []
    area = finite(logs.metrics["mia_min_k"]["agg_value"])
    if area is None:
        return []
    notes = []
    blind = privleak(area, DEFAULT_AUC, parity=True)
    # At an AUC of 1 it is -100 against any reference, which tells nothing of which it was.
    if area != 1 and abs(blind - logged) <= AGREES * max(1.0, abs(blind)):
        notes.append("compared with an AUC of 0.5 and not with a retained model, which the file does not say")
        other = finite((retained or {}).get("mia_min_k", {}).get("agg_value"))
        if other is not None and other < 1:
            notes.append(f"against the retained model's {other:.3f} it is {privleak(area, other):.1f}")
    if logged > 100 or area < 0.05:
        notes.append(
            "far above 0: forget texts are less likely than unseen ones, which is a collapse and no forgetting"
        )
    return notes


def _rouge_notes(metric: Mapping[str, Any], suite: str) -> list[str]:
    rows = [entry or {} for entry in (metric.get("value_by_index") or {}).values()]
    said = [row for row in rows if None not in (row.get("generation"), row.get("ground_truth"))]
    if not said:
        return []
    notes = []
    empty = sum(is_empty(entry["generation"]) for entry in said)
    if empty:
        notes.append(f"{empty} of {len(said)} generations hold no word and count as 0 there, as if it were forgotten")
    if suite == "MUSE":
        plain = np.mean([rouge_l(e["generation"], e["ground_truth"], "plain").f1 for e in said])
        notes.append(f"words are stemmed there; MUSE's own code does not, which gives {plain:.4f}")
    return notes


def finite(value: Any) -> float | None:
    """Return a value where it is a number that can be compared, else None."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None
