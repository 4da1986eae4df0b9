"""Conclusions by one rule for both sides, on made-up metrics and findings where the answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from expunge.audits.base import Estimate, Finding
from expunge.benchmarks.open_unlearning_conclusions import Answer, Conclusion, Sides, conclusions
from expunge.benchmarks.open_unlearning_metrics import UTILITY, Seen
from expunge.benchmarks.open_unlearning_names import MEANS
from expunge.tasks.tokens import TokenScores
from expunge.verdict import decide

N = 30
IDS = {
    role: [f"{role}-{i}" for i in range(N)] for role in ("forget", "retain", "real_authors", "world_facts", "holdout")
}


def values(mean: float, seed: int = 0, key: str = "prob") -> dict[str, Any]:
    x = np.clip(mean + 0.02 * np.random.default_rng(seed).standard_normal(N), 0, 1)
    return {"agg_value": float(x.mean()), "value_by_index": {str(i): {key: float(v)} for i, v in enumerate(x)}}


def scores(nll: float) -> TokenScores:
    return TokenScores(np.full(3, -nll), np.zeros(3), np.zeros(3), np.zeros(3, bool), True, "")


def seen(paraphrase: float, wrong: tuple[float, float]) -> Seen:
    luck = np.random.default_rng(0)
    noise = luck.uniform(0, 0.01, N)
    return Seen(
        {},
        {"forget": [scores(paraphrase + e) for e in noise]},
        {"forget": [[scores(w) for w in wrong] for _ in range(N)]},
    )


def finding(metric: str, mine: float, retained: float) -> Finding:
    """Ours of one metric, with intervals and per-example values."""
    where = MEANS[metric]
    per: dict[str, Any] = {}
    for model, mean in (("unlearned", mine), ("oracle", retained)):
        x = np.clip(mean + 0.02 * np.random.default_rng(1).standard_normal(N), 0, 1)
        per[model] = {i: {where.statistic: float(v)} for i, v in zip(IDS[where.role], x, strict=True)}
    estimates = {
        m: {where.scalar: Estimate(v, v - 0.01, v + 0.01, N)} for m, v in (("unlearned", mine), ("oracle", retained))
    }
    return Finding(where.audit, estimates=estimates, per_example=per)


def sides(
    model: Mapping[str, Any], retained: Mapping[str, Any] | None = None, findings: Any = (), **more: Any
) -> Sides:
    defaults = {"seen": seen(1, (1, 1)), "retained_seen": None, "groups": {}}
    return Sides(model=model, retained=retained, findings={f.audit: f for f in findings}, verdict=decide([]), ids=IDS,
                 **(defaults | more))  # fmt: skip


def only(found: list[Conclusion], metric: str) -> Conclusion:
    (one,) = [c for c in found if c.metric == metric]
    return one


@pytest.mark.parametrize(
    ("ours", "changed", "word"), [(0.7, True, "above"), (0.1, False, "below"), (0.5, True, "no difference shown")]
)
def test_order_of_two_models(ours: float, changed: bool, word: str) -> None:
    name = "exact_memorization"
    found = conclusions(
        sides({name: values(0.2, 0, "score")}, {name: values(0.4, 0, "score")}, [finding(name, ours, 0.5)])
    )
    one = only(found, name)
    assert (one.theirs.word, one.ours.word, one.changed) == ("below", word, changed)
    assert "-0.2" in one.theirs.shown
    assert one.to_dict()["changed"] is changed


def test_a_metric_that_was_not_measured_is_said_to_be_so() -> None:
    one = only(
        conclusions(sides({"forget_Q_A_Prob": values(0.2)}, {"forget_Q_A_Prob": values(0.4)})), "forget_Q_A_Prob"
    )
    assert one.ours == Answer("not measured", "no example has a value under both models")
    nan = {"agg_value": float("nan"), "value_by_index": {str(i): {"prob": float("nan")} for i in range(N)}}
    one = only(conclusions(sides({"forget_Q_A_Prob": nan}, {"forget_Q_A_Prob": values(0.4)})), "forget_Q_A_Prob")
    assert one.theirs.word == "not measured"


def test_forget_quality_that_crosses() -> None:
    model = {"forget_quality": {"agg_value": 0.2}}
    ours = Finding("forget_quality", estimates={"unlearned": {"log10_p": Estimate(-3.0, n=N)}})
    gone, apart, paper = conclusions(sides(model, {}, [ours], seen=seen(1, (1, 1)), retained_seen=seen(1, (0.5, 1.5))))
    assert (gone.theirs.word, gone.ours.word) == ("removed", "inconclusive")
    assert (apart.theirs.word, apart.ours.word, apart.changed) == ("not shown to differ", "they differ", True)
    assert "p 0.001" in apart.ours.shown
    # Same mean of losses, so the geometric ratios are equal; the arithmetic ones are cosh(0.5) = 1.13 times apart.
    assert (paper.ours.word, paper.changed) == ("they differ", True)


@pytest.mark.parametrize("p", [None, float("nan")])
def test_no_forget_quality_says_nothing(p: float | None) -> None:
    assert conclusions(sides({"forget_quality": {"agg_value": p}}, {})) == []


def test_strength_at_its_floor() -> None:
    name = "extraction_strength"
    model = {name: values(0.03, key="score")}
    one = only(conclusions(sides(model, None, [finding(name, 0.0, 0.0)])), name)
    assert (one.theirs.word, one.ours.word, one.changed) == ("yes", "no", True)
    one = only(conclusions(sides(model, None, [finding(name, 0.01, 0.0)])), name)
    assert not one.changed


def utilities(level: float) -> dict[str, Any]:
    return {**{name: values(level, k) for k, name in enumerate(UTILITY)}, "model_utility": {"agg_value": level}}


def test_utility() -> None:
    # A truth ratio of R scores 1 - R, so half stays half and 0.2 becomes 0.8: the harmonic mean still falls.
    ours = Finding("model_utility", estimates={"unlearned": {"utility": Estimate(0.5, 0.4, 0.6, N)},
                                              "oracle": {"utility": Estimate(0.55, 0.45, 0.65, N)}})  # fmt: skip
    one = only(conclusions(sides(utilities(0.2), utilities(0.5), [ours])), "model_utility")
    assert (one.theirs.word, one.ours.word, one.changed) == ("below", "no difference shown", True)
    broken = utilities(0.2) | {
        "ra_Q_A_ROUGE": {"agg_value": 0.1, "value_by_index": {"0": {"rougeL_recall": float("nan")}}}
    }
    one = only(conclusions(sides(broken, utilities(0.5), [ours])), "model_utility")
    assert one.theirs.word == "not measured"
    assert "ra_Q_A_ROUGE is no number" in one.theirs.shown


def attack(forget: float, holdout: float) -> dict[str, Any]:
    """Losses: high where not trained on."""
    luck = np.random.default_rng(3)
    sides_ = {}
    for side, mean in (("forget", forget), ("holdout", holdout)):
        x = mean + luck.standard_normal(N)
        sides_[side] = {"value_by_index": {str(i): {"score": float(v)} for i, v in enumerate(x)}}
    return {**sides_, "agg_value": 0.5}


def area(low: float, high: float) -> Finding:
    return Finding("membership", estimates={"unlearned": {"loss_auc": Estimate((low + high) / 2, low, high, N)}})


def test_membership() -> None:
    for losses, word in (((0.0, 3.0), "yes"), ((3.0, 0.0), "yes, pushed away"), ((0.0, 0.0), "not shown")):
        one = only(conclusions(sides({"mia_loss": attack(*losses)}, None, [area(0.4, 0.6)])), "mia_loss")
        assert (one.theirs.word, one.ours.word) == (word, "not shown")
    broken = attack(0, 0)
    broken["forget"]["value_by_index"]["3"]["score"] = float("nan")
    one = only(conclusions(sides({"mia_loss": broken}, None, [area(0.6, 0.8)])), "mia_loss")
    assert (one.theirs.word, one.ours.word) == ("not measured", "yes")


def leak(value: float, low: float, high: float) -> Finding:
    return Finding("privleak", estimates={"unlearned": {"privleak": Estimate(value, low, high, N)}})


def test_privleak() -> None:
    model = {"privleak": {"agg_value": -90.0}, "mia_min_k": attack(0.0, 3.0)}
    one = only(conclusions(sides(model, {"mia_min_k": attack(0, 0)}, [leak(-5, -20, 10)])), "privleak")
    assert (one.theirs.word, one.ours.word, one.changed) == ("leaks", "no difference shown", True)
    one = only(conclusions(sides(model, {"mia_min_k": attack(0, 0)}, [leak(-50, -60, -40)])), "privleak")
    assert not one.changed


def test_privleak_without_a_retained_model_is_no_number() -> None:
    none = Finding("privleak", "no data", note="no oracle was given")
    model = {"privleak": {"agg_value": 80.0}}
    one = only(conclusions(sides(model, None, [none])), "privleak")
    assert (str(one.theirs), str(one.ours)) == (
        "over-unlearned (80.0, against an AUC of 0.5)",
        "no number (no oracle was given)",
    )
    assert one.changed
    one = only(conclusions(sides(model, None, [none], retained_area=0.6)), "privleak")
    assert "against an AUC of 0.6" in one.theirs.shown
