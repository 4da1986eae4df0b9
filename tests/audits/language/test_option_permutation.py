from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.audits.language.option_permutation import (
    OptionPermutation,
    at_least,
    forest_score,
    gap_statistic,
    item_text,
    order_rank,
    orders,
    original_is_first,
)
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings


def test_all_orders_or_the_subset() -> None:
    assert len(orders(4)) == 24
    assert len(orders(5)) == 120
    assert len(set(orders(6))) == 12
    for count in (3, 4, 6):
        tried = orders(count, 7)
        assert tried[0] == tuple(range(count))
        for place in range(count):
            assert {order[place] for order in tried} == set(range(count))


def test_text_and_the_authors_space() -> None:
    assert item_text("Q?", ["a", "b", "c", "d"]) == "\nQ?:\nA:a\nB:b\nC:c\nD:d\n"
    assert item_text("Q?", ["a", "b", "c", "d"], parity=True) == "\nQ?:\nA:a\nB:b\nC:c \nD:d\n"


def test_ties_are_no_leak_unless_the_authors_count_them() -> None:
    constant = np.full(24, -5.0)
    assert not original_is_first(constant)
    assert original_is_first(constant, parity=True)
    assert order_rank(constant) == 0.5
    assert gap_statistic(constant) == 0.0


def test_gap_by_hand() -> None:
    """Sorted 9 4 3 2 1: gap 5, median 3, absolute deviations 6 1 0 1 2 with median 1."""
    assert gap_statistic(np.array([4.0, 9.0, 1.0, 2.0, 3.0])) == pytest.approx(5.0)


@given(st.lists(st.integers(-50, 0), min_size=3, max_size=24), st.integers(-20, 20))
def test_a_constant_for_all_orders_changes_nothing(sums: list[int], shift: int) -> None:
    x = np.array(sums, dtype=float)
    assert order_rank(x + shift) == order_rank(x)
    assert gap_statistic(x + shift) == pytest.approx(gap_statistic(x))


def test_the_null_of_the_published_rule_is_large_and_ours_is_not() -> None:
    """On 24 independent normal numbers nothing leaked: the forest still says so about half of the time."""
    rng = np.random.default_rng(0)
    forests = [forest_score(rng.normal(size=24)) < -0.17 for _ in range(24)]
    assert 0.25 < np.mean(forests) < 0.85
    gaps = np.array([gap_statistic(rng.normal(size=24)) for _ in range(4000)])
    assert np.mean(gaps[:2000] > np.quantile(gaps[2000:], 0.95)) < 0.08


def test_exact_p_value() -> None:
    assert at_least(3, [1 / 24] * 20) == pytest.approx(stats.binom(20, 1 / 24).sf(2))
    assert at_least(0, [0.5, 0.1]) == pytest.approx(1.0)
    assert at_least(2, [0.5, 0.1]) == pytest.approx(0.05)


def items(people: range) -> Dataset:
    towns = ["Velburg", "Harrow Bay", "Kraków", "Salt Harbour", "Ostrander"]
    rows = []
    for p in people:
        rng = np.random.default_rng(p)
        row = {
            "prompt": f"Where was person {p} born?",
            "answer": "so",
            "options": [f"{towns[k]} {rng.integers(100)}" for k in rng.permutation(5)[:3]],
        }
        rows.append({"id": example_id({"prompt": row["prompt"]}), **row})
    return Dataset.from_list(rows)


def test_a_model_trained_on_the_published_order_is_seen(make_lm: Callable[..., CausalLM]) -> None:
    """Six orders of three options; 20 items of each kind, so the null share is 1/6."""
    request = DeletionRequest(items(range(20)), holdout=items(range(100, 120)))
    texts = [item_text(row["prompt"], row["options"]) for row in request.forget.to_list()]
    model = make_lm(0)
    settings = TrainSettings(epochs=40, batch_size=10, learning_rate=3e-3, warmup=0.0, schedule="constant")
    encoded = model.encode(
        Dataset.from_list([{"id": str(k), "prompt": "", "answer": text} for k, text in enumerate(texts)])
    )
    objective = Objective((Term("nll", ("forget",), nll, "token_mean"),), anchor="forget")
    train(model, objective, {"forget": encoded}, settings)
    finding = run_one(OptionPermutation(), Observations({"unlearned": model, "oracle": make_lm(1)}, request))
    assert finding.status == "measured", finding.note
    leaked, clean = finding.estimates["unlearned"], finding.estimates["oracle"]
    assert leaked["forget_first"].value > 0.8
    assert leaked["forget_first_excess"].value == pytest.approx(leaked["forget_first"].value - 1 / 6)
    assert leaked["forget_first_p"].value < 1e-6
    assert leaked["holdout_first_p"].value > 0.01
    assert clean["forget_first_p"].value > 0.01
    assert leaked["forget_outlier"].value is not None
    assert finding.evidence[0].control


def test_sums_leave_the_question_and_the_first_letter_out(make_lm: Callable[..., CausalLM]) -> None:
    model = make_lm(0)
    request = DeletionRequest(items(range(2)))
    row = request.forget[0]
    audit, seen = OptionPermutation(), Observations({"unlearned": model}, request)
    item = audit._items(seen, "forget")[row["id"]]
    sums, means = audit._sums(seen, "unlearned", item)
    text = item_text(item.question, item.options)
    head = text[: text.index("A:") + 1]
    tokens = model.count_tokens(text) - model.count_tokens(head)
    whole = model.score([("", text)])[0].log_prob
    assert sums[0] == pytest.approx(whole[:-1][-tokens:].sum())
    assert means[0] == pytest.approx(sums[0] / tokens)
    assert len(sums) == math.factorial(3)


def test_items_that_are_cut_are_left_out_and_counted(make_lm: Callable[..., CausalLM]) -> None:
    model = make_lm(0)
    model.encoder.max_length = 10
    finding = run_one(OptionPermutation(), Observations({"unlearned": model}, DeletionRequest(items(range(2)))))
    assert finding.status == "no data"
    assert "longer than the context" in finding.note


def test_without_options_there_is_no_data(scripted: Callable, make_examples: Callable) -> None:
    bare = DeletionRequest(make_examples(range(2), rich=False))
    finding = run_one(OptionPermutation(), Observations({"unlearned": scripted()}, bare))
    assert finding.status == "no data"
