from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.audits.general.lira import Lira, class_logit, draw_halves, lira_scores, logit_confidence
from expunge.audits.observations import Observations
from expunge.audits.roc import auc
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.predictor import Predictor
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings

QUICK = {"shadows": 4, "epochs": 25, "batch_size": 8, "learning_rate": 3e-3}


def test_scores_by_loops() -> None:
    """Each example's two normal densities, worked out one at a time."""
    rng = np.random.default_rng(0)
    shadows, inside = rng.normal(size=(8, 5)), draw_halves(list("abcde"), {}, 8, 0)
    observed = rng.normal(size=5)
    online = lira_scores(observed, shadows, inside, "online", pooled=False)
    offline = lira_scores(observed, shadows, inside, "offline", pooled=False)
    for k in range(5):
        own, others = shadows[inside[:, k], k], shadows[~inside[:, k], k]
        log_in = stats.norm(own.mean(), own.std(ddof=1)).logpdf(observed[k])
        log_out = stats.norm(others.mean(), others.std(ddof=1)).logpdf(observed[k])
        assert online[k] == pytest.approx(log_in - log_out)
        assert offline[k] == pytest.approx(stats.norm(others.mean(), others.std(ddof=1)).cdf(observed[k]))


@pytest.mark.parametrize("pooled", [False, True])
def test_scores_of_the_released_code_by_loops(pooled: bool) -> None:
    """Medians, squares divided by their number, as many shadows as every example has; offline is two-sided."""
    rng = np.random.default_rng(3)
    shadows, observed = rng.normal(size=(8, 5)), rng.normal(size=5)
    inside = np.stack([rng.permutation(8) < 4 + k % 2 for k in range(5)], axis=1)
    own = [[shadows[s, k] for s in range(8) if inside[s, k]][:4] for k in range(5)]
    others = [[shadows[s, k] for s in range(8) if not inside[s, k]][:3] for k in range(5)]
    online = lira_scores(observed, shadows, inside, "online", pooled, parity=True)
    offline = lira_scores(observed, shadows, inside, "offline", pooled, parity=True)
    for k in range(5):
        log_in, log_out, alone = (
            stats.norm(np.median(values[k]), np.std(spread if pooled else spread[k])).logpdf(observed[k])
            for values, spread in ((own, own), (others, own if pooled else others), (others, others))
        )
        assert online[k] == pytest.approx(log_in - log_out)
        assert offline[k] == pytest.approx(-alone)


def test_offline_ranks_go_on_where_the_score_is_one() -> None:
    inside = draw_halves(["a", "b", "c", "d"], {}, 8, 0)
    shadows = np.random.default_rng(0).normal(size=(8, 4))
    observed = np.array([30.0, 60.0, -1.0, 0.5])
    score = lira_scores(observed, shadows, inside, "offline")
    assert score[0] == score[1] == 1.0
    ranked = Lira()._scores(observed, shadows, inside, "offline")
    assert ranked.argsort().tolist() == [2, 3, 0, 1]
    np.testing.assert_allclose(stats.norm.cdf(ranked), score)
    assert Lira(Lira.Config(parity=True))._scores(observed, shadows, inside, "offline").tolist() == (
        lira_scores(observed, shadows, inside, "offline", parity=True).tolist()
    )


def test_offline_the_released_code_calls_what_is_unusually_unlikely_a_member() -> None:
    inside = draw_halves(list("ab"), {}, 8, 0)
    shadows = np.random.default_rng(0).normal(size=(8, 2))
    low = np.array([-9.0, -9.0])
    both = [lira_scores(low, shadows, inside, "offline", pooled=False, parity=parity) for parity in (False, True)]
    usual = lira_scores(np.median(shadows, 0), shadows, inside, "offline", pooled=False, parity=True)
    assert (both[0] < 1e-3).all()
    assert (both[1] > usual).all()


def test_a_pooled_deviation_is_that_within_examples() -> None:
    """Examples of very different level but the same spread 1: pooling must not take the levels for spread."""
    rng = np.random.default_rng(0)
    inside = draw_halves([str(k) for k in range(200)], {}, 8, 0)
    shadows = rng.normal(size=(8, 200)) + 100 * rng.normal(size=200) + 3 * inside
    observed = shadows.mean(0) + 1.5
    ratio = lira_scores(observed, shadows, inside, "online", pooled=True)
    mean_in = np.array([shadows[inside[:, k], k].mean() for k in range(200)])
    mean_out = np.array([shadows[~inside[:, k], k].mean() for k in range(200)])
    assert ratio == pytest.approx(((observed - mean_out) ** 2 - (observed - mean_in) ** 2) / 2, rel=0.15, abs=0.6)


def test_it_beats_one_threshold_where_examples_differ_in_difficulty() -> None:
    rng = np.random.default_rng(1)
    n, level = 400, 5 * np.random.default_rng(2).normal(size=400)
    inside = draw_halves([str(k) for k in range(n)], {}, 16, 0)
    shadows = level + 1.5 * inside + 0.5 * rng.normal(size=(16, n))
    member = np.arange(n) < n // 2
    observed = level + 1.5 * member + 0.5 * rng.normal(size=n)
    for mode in ("online", "offline"):
        found = lira_scores(observed, shadows, inside, mode)
        assert auc(found[member], found[~member]) > 0.95
    assert auc(observed[member], observed[~member]) < 0.7


def test_too_few_shadows_are_refused() -> None:
    inside = np.array([[True, True], [True, False]])
    with pytest.raises(ValueError, match="at least 1"):
        lira_scores(np.zeros(2), np.zeros((2, 2)), inside, "offline")
    with pytest.raises(ValueError, match="at least 2"):
        lira_scores(np.zeros(2), np.zeros((2, 2)), ~inside, "online", pooled=False)


@given(st.floats(1e-10, 30.0))
def test_logit_of_the_confidence(nll_value: float) -> None:
    p = np.exp(-np.longdouble(nll_value))
    assert logit_confidence(np.array([nll_value]))[0] == pytest.approx(float(np.log(p / (1 - p))), rel=1e-4, abs=1e-6)


def test_logit_of_a_class_keeps_its_precision_where_the_others_have_nothing() -> None:
    logits = np.array([[0.0, 50.0, -3.0], [60.0, 0.0, -3.0], [1.0, 0.5, -900.0]])
    said = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = class_logit(np.stack([said, said[::-1]]), np.array([1, 0, 0]))
    # Of logits alone: the true class's less the log of the others' summed exponentials.
    ahead = [50.0 - np.log(1 + np.exp(-3.0)), 60.0 - np.log(1 + np.exp(-3.0)), 0.5]
    assert found[0] == pytest.approx(ahead, abs=1e-9)
    behind = [-np.log(np.exp(1.0) + np.exp(-900.0)) + 0.5, ahead[1], -np.log(np.exp(50.0) + np.exp(-3.0))]
    assert found[1] == pytest.approx(behind, abs=1e-9)
    # Through the NLL, both of these would be the same number.
    assert logit_confidence(-said[[0, 1], [1, 0]])[0] == logit_confidence(-said[[0, 1], [1, 0]])[1]


@given(st.integers(2, 20), st.integers(1, 4), st.integers(0, 3))
def test_halves(count: int, pairs: int, seed: int) -> None:
    ids = [f"e{k}" for k in range(count)]
    groups = {i: str(k // 3) for k, i in enumerate(ids)}
    inside = draw_halves(ids, groups, 2 * pairs, seed)
    assert (inside.sum(0) == pairs).all()
    turned = draw_halves(ids[::-1], groups, 2 * pairs, seed)
    assert np.array_equal(inside, turned[:, ::-1])
    for a in range(count):
        for b in range(count):
            if groups[ids[a]] == groups[ids[b]]:
                assert np.array_equal(inside[:, a], inside[:, b])


def trained(model: CausalLM, request: DeletionRequest, roles: tuple[str, ...]) -> CausalLM:
    encoded = model.encode(request.retain)
    for role in roles:
        encoded = encoded + model.encode(getattr(request, role))
    settings = TrainSettings(epochs=25, batch_size=8, learning_rate=3e-3, warmup=0.1, schedule="cosine", seed=77)
    train(
        model, Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain"), {"retain": encoded}, settings
    )
    return model


def test_a_model_that_was_trained_on_the_data_is_told_from_one_that_was_not(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path
) -> None:
    models = {
        "unlearned": trained(make_lm(7), request_, ("forget",)),
        "oracle": trained(make_lm(8), request_, ()),
    }
    config = Lira.Config(**QUICK, folder=tmp_path)
    finding = run_one(Lira(config), Observations(models, request_))
    assert finding.status == "measured", finding.note
    assert finding.estimates["unlearned"]["online_auc"].value >= 0.9
    assert finding.estimates["unlearned"]["offline_auc"].value >= 0.7
    assert finding.estimates["oracle"]["online_auc"].value < 0.8
    assert len(finding.tables[0].rows) == 8
    # what shadows said is kept, and read again instead of being trained again
    files = sorted(tmp_path.rglob("shadow-*.json"))
    assert len(files) == 4
    stamps = [f.stat().st_mtime_ns for f in files]
    again = run_one(Lira(config), Observations(models, request_))
    assert again == finding
    assert [f.stat().st_mtime_ns for f in files] == stamps
    released = run_one(Lira(Lira.Config(**QUICK, folder=tmp_path, parity=True)), Observations(models, request_))
    assert [f.stat().st_mtime_ns for f in files] == stamps
    assert released.attempted["as released"]
    assert released.per_example != finding.per_example


def test_u_lira_unlearns_the_half_that_each_shadow_saw(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    asked: list[tuple[int, int]] = []

    def transform(model: CausalLM, request: DeletionRequest, seed: int) -> CausalLM:
        asked.append((len(request.forget), len(request.retain)))
        return model

    audit = Lira(Lira.Config(shadows=4, max_steps=1), transform)
    finding = run_one(audit, Observations({"unlearned": make_lm(0)}, request_))
    assert finding.attempted["unlearned"] is True
    assert asked == [(8, 8)] * 4


def test_a_classifier_that_learned_examples_by_heart_is_told_by_each_feature(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    """Labels at random, so that only what was trained on can be known."""
    luck = np.random.default_rng(0)

    def rows(numbers: range) -> Dataset:
        plain = tiny_rows("table", numbers)
        labels = [("a", "b", "c")[k] for k in luck.integers(0, 3, len(plain))]
        known = sorted(set(plain["label"]))
        return plain.remove_columns("label").add_column("label", [known["abc".index(name)] for name in labels])

    request = DeletionRequest(rows(range(16)), rows(range(100, 130)), rows(range(200, 216)))
    models = {}
    for name, roles in (("unlearned", ("forget", "retain")), ("oracle", ("retain",))):
        models[name] = tiny_predictor("table", 40)
        encoded = models[name].encode(getattr(request, roles[0]))
        for role in roles[1:]:
            encoded = encoded + models[name].encode(getattr(request, role))
        settings = TrainSettings(epochs=300, batch_size=64, learning_rate=3e-2, seed=5)
        objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
        train(models[name], objective, {"retain": encoded}, settings)
    config = Lira.Config(shadows=8, epochs=300, batch_size=64, learning_rate=3e-2)
    found = run_one(Lira(config), Observations(models, request))
    assert found.status == "measured", found.note
    assert found.attempted["statistic"] == "logit"
    knows, never = found.estimates["unlearned"], found.estimates["oracle"]
    for name in ("online_auc", "online_confidence_auc", "online_modified_entropy_auc", "online_probability_auc"):
        assert knows[name].value > 0.75, name
        assert knows[name].value > never[name].value + 0.1, name
    assert {s.name for s in found.scalars} == set(knows)
