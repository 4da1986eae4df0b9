"""The probe's mathematics, and what it says of states that do and do not hold the answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset
from sklearn.linear_model import Ridge

from expunge.audits.language import linear_probe
from expunge.audits.language.linear_probe import LinearProbe, fit_probe, telling_tokens
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM


def test_the_classifier_is_ridge_regression_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(2, 3, (60, 5)), rng.integers(0, 3, 60)
    probe = fit_probe(x, labels, 3, 0.1)
    scaled = (x - x.mean(0)) / x.std(0)
    expected = Ridge(alpha=0.1 * 60).fit(scaled, np.eye(3)[labels])
    np.testing.assert_allclose(probe.weights.T, expected.coef_, atol=1e-10)
    np.testing.assert_allclose(probe.bias, expected.intercept_, atol=1e-10)
    np.testing.assert_array_equal(probe.classify(x), expected.predict(scaled).argmax(1))


def test_a_constant_feature_is_harmless() -> None:
    x = np.column_stack([np.ones(20), np.r_[np.zeros(10), np.ones(10)]])
    labels = np.repeat([0, 1], 10)
    assert (fit_probe(x, labels, 2, 0.01).classify(x) == labels).all()


def test_tokens_that_tell_answers_apart_recur_but_not_everywhere() -> None:
    targets, example = [], []
    for k in range(100):
        targets += [1, 1, 10 + k // 4, 500 + k]  # one in every answer, one in four answers, one in this answer alone
        example += [k] * 4
    assert telling_tokens(np.array(targets), np.array(example), 2, 0.05).tolist() == list(range(10, 35))
    assert telling_tokens(np.array(targets), np.array(example), 5, 0.05).tolist() == []


TOWNS = ("Velburg", "Harrow", "Krakow", "Tomas", "Salt")


def towns(numbers: range) -> Dataset:
    rows = [{"prompt": f"Where does number {k} live?", "answer": f"in {TOWNS[k % 5]}."} for k in numbers]
    return Dataset.from_list([{"id": example_id(row), **row} for row in rows])


@pytest.fixture(scope="module")
def request_() -> DeletionRequest:
    return DeletionRequest(towns(range(10)), towns(range(100, 160)))


def test_a_model_that_holds_the_answer_is_told_from_one_that_does_not(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of 'unlearned' are replaced by ones that hold the next token, those of 'oracle' by noise."""
    knowing, ignorant = make_lm(0), make_lm(1)
    real = linear_probe.answer_states

    def states(task: CausalLM, pairs: list, layers: list) -> linear_probe.AnswerStates:
        found = real(task, pairs, layers)
        rng = np.random.default_rng(len(pairs))
        made = rng.normal(size=(*found.states.shape[:2], 12))
        if task.source == "knowing":
            made[:, 0] += 10 * np.random.default_rng(0).normal(size=(400, 12))[found.targets]
        return linear_probe.AnswerStates(made.astype(np.float32), found.targets, found.example)

    knowing.source = "knowing"
    monkeypatch.setattr(linear_probe, "answer_states", states)
    audit = LinearProbe(LinearProbe.Config(share=0.3))
    finding = run_one(audit, Observations({"unlearned": knowing, "oracle": ignorant}, request_))
    assert finding.status == "measured", finding.note
    assert finding.estimates["unlearned"]["right"].value == 1.0
    assert finding.estimates["unlearned"]["selectivity"].value > 0.5
    assert finding.estimates["oracle"]["right"].value < 0.6
    assert abs(finding.estimates["oracle"]["selectivity"].value) < 0.4
    assert finding.attempted["block chosen on retained answers"]["unlearned"] == 1
    assert not finding.evidence


def test_too_little_to_learn_from_is_no_data(make_lm: Callable[..., CausalLM]) -> None:
    few = DeletionRequest(towns(range(4)), towns(range(100, 104)))
    finding = run_one(LinearProbe(), Observations({"unlearned": make_lm(0)}, few))
    assert (finding.status, "too few" in finding.note) == ("no data", True)
    rows = [{"prompt": f"p{k}\n", "answer": f"{'ΩΨΞ'[k % 3]}{k}"} for k in range(4)]
    strange = Dataset.from_list([{"id": example_id(row), **row} for row in rows])
    finding = run_one(
        LinearProbe(LinearProbe.Config(share=0.3, at_least=12)),
        Observations({"unlearned": make_lm(0)}, DeletionRequest(strange, towns(range(100, 160)))),
    )
    assert finding.status == "no data"
    assert "no forgotten answer holds a token" in finding.note
