"""Every metric against a plain transcription of its definition there, on made-up token scores."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from expunge.benchmarks.open_unlearning_metrics import (
    KNOWN,
    UTILITY,
    Seen,
    derived,
    per_example,
    ratio_score,
    tofu_metrics,
)
from expunge.benchmarks.open_unlearning_text import Said
from expunge.tasks.tokens import TokenScores

SAID = [Said("She repairs old clocks", "She repairs clocks"), Said("", "Velburg"), Said("Velburg", "Velburg")]


def token_scores(seed: int, n: int) -> TokenScores:
    luck = np.random.default_rng(seed)
    mean, var = -luck.uniform(2, 4, n), luck.uniform(0, 2, n)
    var[0] = 0.0  # below what they clamp at
    return TokenScores(-luck.exponential(1.5, n), mean, var, luck.random(n) < 0.6, True, f"answer {seed} " * (seed % 3))


def answers(start: int, count: int, least: int = 1) -> list[TokenScores]:
    return [token_scores(start + k, least + (3 * k) % 7) for k in range(count)]


def seen(seed: int = 0, forget: int = 12) -> Seen:
    sizes = {"forget": forget, "retain": 9, "ra": 6, "wf": 5}
    return Seen(
        answers={**{s: answers(seed + 100 * k, n) for k, (s, n) in enumerate(sizes.items())},
                 "holdout": answers(seed + 900, 8)},
        paraphrased={s: answers(seed + 1000 * k, sizes[s]) for k, s in enumerate(("forget", "retain"), 1)},
        perturbed={s: [answers(seed + 3000 * k + 7 * i, 3) for i in range(n)]
                   for k, (s, n) in enumerate(sizes.items(), 1)},
        said=dict.fromkeys(sizes, SAID),
    )  # fmt: skip


def loss(one: TokenScores) -> float:
    return -sum(one.log_prob) / len(one)


def strength(one: TokenScores) -> float:
    """Their loop: the variable stays at the last token where nothing matches."""
    right = list(one.hit)[:-1]
    if not right:
        return 0
    for k in range(len(right)):
        if all(right[k:]):
            break
    return 1 - k / len(right)


def lowest(values: list[float]) -> float:
    return -float(np.mean(sorted(values)[: max(1, int(len(values) * 0.4))])) if values else 0


def ratios(correct: list[TokenScores], wrong: list[list[TokenScores]]) -> list[float]:
    return [
        math.exp(-np.mean([loss(w) for w in row])) / (math.exp(-loss(one)) + 1e-10)
        for one, row in zip(correct, wrong, strict=True)
    ]


def expected(it: Any, retained: Any = None) -> Iterator[tuple[str, float]]:
    for s in ("forget", "retain", "ra", "wf"):
        yield f"{s}_Q_A_Prob", np.mean([math.exp(-loss(a)) for a in it.answers[s]])
        yield f"{s}_Q_A_PERT_Prob", np.mean([np.mean([math.exp(-loss(w)) for w in row]) for row in it.perturbed[s]])
        # Recall by hand: 3 of 3 words, 0 of 1, 1 of 1.
        yield f"{s}_Q_A_ROUGE", (1 + 0 + 1) / 3
        right = it.paraphrased.get(s, it.answers[s])
        if s in it.paraphrased:
            yield f"{s}_Q_A_PARA_Prob", np.mean([math.exp(-loss(a)) for a in right])
        else:
            parts = []
            for one, row in zip(right, it.perturbed[s], strict=True):
                own, others = math.exp(-loss(one)), sum(math.exp(-loss(w)) for w in row)
                parts.append(own / (own + others + 1e-10))
            yield f"{s}_Q_A_Prob_normalised", np.mean(parts)
        r = np.array(ratios(right, it.perturbed[s]))
        if s == "forget":
            yield "forget_truth_ratio", np.mean(np.minimum(r, 1 / (r + 1e-10)))
        else:
            yield f"{s}_Truth_Ratio", np.mean(np.maximum(0, 1 - r))
    forget, holdout = it.answers["forget"], it.answers["holdout"]
    yield "extraction_strength", np.mean([strength(a) for a in forget])
    yield "exact_memorization", np.mean([np.mean(a.hit[:-1]) for a in forget if len(a) > 1])
    attacks = {
        "mia_loss": loss,
        "mia_zlib": lambda a: loss(a) / len(zlib.compress(a.text.encode())),
        "mia_min_k": lambda a: lowest(list(a.log_prob[:-1])),
        "mia_min_k_plus_plus": lambda a: lowest(
            [(p - m) / math.sqrt(max(v, 1e-6)) for p, m, v in zip(a.log_prob[:-1], a.mean_log_prob[:-1],
                                                                  a.var_log_prob[:-1], strict=True)]
        ),
    }  # fmt: skip
    areas = {}
    for name, score in attacks.items():
        sides = [[score(a) for a in side] for side in (forget, holdout)]
        areas[name] = roc_auc_score([0] * len(sides[0]) + [1] * len(sides[1]), np.concatenate(sides))
        yield name, areas[name]
    if retained is not None:
        both = [ratios(x.paraphrased["forget"], x.perturbed["forget"]) for x in (it, retained)]
        yield "forget_quality", ks_2samp(*both).pvalue
        area = dict(expected(retained))["mia_min_k"]
    else:
        area = 0.5
    yield "privleak", ((1 - areas["mia_min_k"]) - (1 - area)) / ((1 - area) + 1e-10) * 100


def test_all_metrics() -> None:
    model, retained = seen(), seen(50_000)
    found = tofu_metrics(model, tofu_metrics(retained))
    wanted = dict(expected(model, retained))
    wanted["model_utility"] = float(hmean([wanted[name] for name in UTILITY]))
    assert {name: metric["agg_value"] for name, metric in found.items()} == pytest.approx(wanted)
    assert set(found) == set(KNOWN) - {"mia_reference", "mia_gradnorm"}


def test_attacks_that_need_more_than_scores() -> None:
    model, retained = seen(), seen(50_000)
    norms = {"forget": [float(k) for k in range(12)], "holdout": [k + 0.5 for k in range(8)]}
    found = tofu_metrics(replace(model, norms=norms), None, retained)
    pairs = [(f, h) for f in norms["forget"] for h in norms["holdout"]]
    assert found["mia_gradnorm"]["agg_value"] == pytest.approx(np.mean([h > f for f, h in pairs]))
    apart = {
        side: [loss(a) - loss(b) for a, b in zip(model.answers[side], retained.answers[side], strict=True)]
        for side in ("forget", "holdout")
    }
    assert [e["score"] for e in found["mia_reference"]["holdout"]["value_by_index"].values()] == pytest.approx(
        apart["holdout"]
    )
    wins = [h > f for f in apart["forget"] for h in apart["holdout"]]
    assert found["mia_reference"]["agg_value"] == pytest.approx(np.mean(wins))
    gap = replace(model, answers={**model.answers, "holdout": [None, *model.answers["holdout"][1:]]})
    assert np.isnan(tofu_metrics(gap, None, retained)["mia_reference"]["agg_value"])


def test_without_a_retained_model() -> None:
    found = tofu_metrics(seen())
    assert found["forget_quality"]["agg_value"] is None
    assert found["privleak"]["agg_value"] == pytest.approx(dict(expected(seen()))["privleak"])
    # A log of a retained model without the area is the same.
    assert tofu_metrics(seen(), {"mia_min_k": {"agg_value": None}})["privleak"] == found["privleak"]


def test_rows_are_numbered_as_there_and_hold_what_is_averaged() -> None:
    found = tofu_metrics(seen())
    for name, metric in found.items():
        if "value_by_index" in metric:
            assert list(metric["value_by_index"]) == [str(i) for i in range(len(metric["value_by_index"]))]
            values = per_example(name, metric)
            assert np.mean(list(values.values())) == pytest.approx(metric["agg_value"]), name
    assert found["mia_loss"]["forget"]["value_by_index"]["3"]["score"] == pytest.approx(
        loss(seen().answers["forget"][3])
    )


def test_answers_without_a_label() -> None:
    """NaN where they divide by zero, 0 for Min-K and extraction strength, left out of exact memorisation."""
    it = seen()
    first, *rest = it.perturbed["ra"]
    answers_, wrong = {**it.answers, "forget": [None, *it.answers["forget"][1:]]}, [[None, *first], *rest]
    broken = Seen(answers_, it.paraphrased, {**it.perturbed, "ra": wrong}, it.said)
    found, whole = tofu_metrics(broken), tofu_metrics(it)
    for name in (
        "forget_Q_A_Prob",
        "ra_Truth_Ratio",
        "ra_Q_A_Prob_normalised",
        "mia_loss",
        "mia_zlib",
        "model_utility",
    ):
        assert math.isnan(found[name]["agg_value"]), name
    assert found["extraction_strength"]["value_by_index"]["0"]["score"] == 0
    assert found["exact_memorization"]["value_by_index"]["0"]["score"] is None
    assert found["mia_min_k"]["forget"]["value_by_index"]["0"]["score"] == 0
    assert found["retain_Q_A_Prob"] == whole["retain_Q_A_Prob"]


def test_derived_from_less() -> None:
    assert derived({}, None) == {}
    ratio = {"agg_value": 0.5, "value_by_index": {str(i): {"score": i / 9} for i in range(9)}}
    found = derived({"forget_truth_ratio": ratio}, {"forget_truth_ratio": ratio})
    assert found == {"forget_quality": {"agg_value": 1.0}}


def test_ratio_scores() -> None:
    assert [ratio_score(r, "forget") for r in (0.0, 0.25, 4.0)] == pytest.approx([0.0, 0.25, 0.25])
    assert [ratio_score(r, "other") for r in (0.0, 0.25, 4.0)] == [1.0, 0.75, 0.0]
    assert all(math.isnan(ratio_score(math.nan, about)) for about in ("forget", "other"))  # type: ignore[arg-type]
