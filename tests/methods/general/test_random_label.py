"""Random labels: uniform, fixed by seed and id, in the form of the answers, and learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.data.fictitious import FictitiousWorld
from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.general.random_label import (
    RandomLabel,
    draw_label,
    label_options,
    labelled_pool,
    random_label_loss,
    wrong_classes,
)
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM

MakeTask = Callable[..., CausalLM]


def questions(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{**row, "id": example_id({"prompt": row["prompt"]})} for row in rows])


@given(st.integers(0, 10**6))
def test_over_all_labels_it_is_the_cross_entropy_to_the_uniform_distribution(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 7, generator=generator, dtype=torch.float64).requires_grad_()
    options = torch.tensor([1, 2, 5])
    loss = random_label_loss(logits.expand(3, 7), options).mean()
    uniform = torch.zeros(7, dtype=torch.float64)
    uniform[options] = 1 / 3
    torch.testing.assert_close(loss, -(uniform * logits.log_softmax(-1)).sum())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - uniform)
    assert random_label_loss(logits, torch.tensor([-100])).item() == 0.0


def test_labels_are_uniform_and_follow_from_seed_and_id() -> None:
    drawn = [draw_label(f"id{i}", 4, 7) for i in range(4000)]
    assert stats.chisquare([drawn.count(k) for k in range(4)]).pvalue > 1e-3
    assert drawn == [draw_label(f"id{i}", 4, 7) for i in range(4000)]
    other = [draw_label(f"id{i}", 4, 8) for i in range(4000)]
    agreement = sum(a == b for a, b in zip(drawn, other, strict=True)) / 4000
    assert agreement == pytest.approx(0.25, abs=0.04)


def test_options_come_in_the_form_of_the_answer() -> None:
    rows = [
        {"prompt": "1?", "answer": "B", "options": ["red", "green", "blue"]},
        {"prompt": "2?", "answer": " (c).", "options": ["red", "green", "blue"]},
        {"prompt": "3?", "answer": "Green", "options": ["red", "green", "red"]},
        {"prompt": "4?", "answer": "A", "options": ["A", "B"]},
    ]
    assert label_options(questions(rows)) == [
        ["A", "B", "C"],
        [" (a).", " (b).", " (c)."],
        ["red", "Green"],
        ["A", "B"],
    ]


def test_options_that_differ_in_case_alone_are_one() -> None:
    rows = [{"prompt": "1?", "answer": "Yes", "options": ["yes", "no", "YES", "No"]}]
    assert label_options(questions(rows)) == [["Yes", "no"]]
    # There is nothing else to say, so that no label but the true one could be drawn.
    only = questions([{"prompt": "1?", "answer": "Yes", "options": ["yes", "YES"]}])
    with pytest.raises(BadInput, match="two different options"):
        label_options(only)


def test_without_options_every_answer_of_the_set_is_one() -> None:
    forget = questions(
        [{"prompt": f"{i}?", "answer": a} for i, a in enumerate(["Salt.", "Velburg.", "salt.", "Kraków."])]
    )
    options = label_options(forget)
    assert options == [["Kraków.", "Salt.", "Velburg."]] * 4
    backwards = label_options(forget.select([3, 2, 1, 0]))
    assert backwards == options, "the order of the file does not matter"


def test_a_label_is_kept_or_drawn_from_all() -> None:
    forget = FictitiousWorld(12).multiple_choice()
    options = label_options(forget)
    assert set(map(len, options)) == {4}
    once = labelled_pool(forget, options, "once", 3)
    assert [r.rpartition("#")[0] for r in once["id"]] == forget["id"]
    again = labelled_pool(forget.select(range(len(forget) - 1, -1, -1)), options[::-1], "once", 3)
    assert dict(zip(once["id"], once["answer"], strict=True)) == dict(zip(again["id"], again["answer"], strict=True))
    count = Counter(once["answer"])
    assert stats.chisquare([count[x] for x in "ABCD"]).pvalue > 1e-3
    every = labelled_pool(forget, options, "epoch", 3)
    assert len(every) == 4 * len(forget)
    assert set(once["id"]) <= set(every["id"])


def test_what_holds_no_answer_is_refused(task: CausalLM) -> None:
    rows = [
        {"prompt": "1?", "answer": "D", "options": ["red", "green", "blue"]},
        {"prompt": "2?", "answer": "red", "options": ["red", "green"]},
        {"prompt": "3?", "answer": "red", "options": ["red", "red"]},
    ]
    with pytest.raises(BadInput, match=r"column 'options': do not hold the answer of 2 example\(s\)"):
        unlearn(task, DeletionRequest(questions(rows)), "random_label")
    with pytest.raises(BadInput, match="no column 'choices'"):
        unlearn(task, DeletionRequest(questions(rows)), "random_label", settings={"options_column": "choices"})
    same = questions([{"prompt": f"{i}?", "answer": "Salt."} for i in range(3)])
    with pytest.raises(BadInput, match="one and the same answer"):
        unlearn(task, DeletionRequest(same), "random_label")
    raw = questions([{"prompt": "", "answer": "Salt."}])
    with pytest.raises(BadInput, match="text without a question"):
        unlearn(task, DeletionRequest(raw), "random_label")


def choices(count: int) -> Dataset:
    rows = [
        {
            "prompt": f"Was number {i} born in A. Salt or B. Velburg?",
            "answer": "AB"[i % 2],
            "options": ["Salt", "Velburg"],
        }
        for i in range(count)
    ]
    return questions(rows)


def accuracy(task: CausalLM, pool: Dataset) -> float:
    """How often the given answer is more likely than the other letter."""
    scores = [task.score([(r["prompt"], letter) for r in pool]) for letter in "AB"]  # type: ignore[call-overload, index]
    best = ["AB"[int(b.nll < a.nll)] for a, b in zip(*scores, strict=True)]
    return sum(b == r["answer"] for b, r in zip(best, pool, strict=True)) / len(pool)  # type: ignore[call-overload, index]


def test_the_drawn_labels_are_learned_and_the_truth_with_them_by_chance_alone(make_task: MakeTask) -> None:
    forget = choices(12)
    settings = {"epochs": 150, "batch_size": 12, "learning_rate": 5e-3, "warmup": 0.0, "label_seed": 4}
    done = unlearn(make_task(), DeletionRequest(forget), "random_label", settings=settings)
    assert isinstance(done.model, CausalLM)
    drawn = labelled_pool(forget, label_options(forget), "once", 4)
    assert accuracy(done.model, drawn) == 1.0
    chance = done.config["labels"]["true_by_chance"]
    assert chance == accuracy(done.model, forget) == sum(map(str.__eq__, drawn["answer"], forget["answer"])) / 12
    assert done.config["labels"]["options"] == [2, 2]


def test_drawn_anew_every_epoch_no_label_wins(make_task: MakeTask) -> None:
    forget = choices(12)
    settings = {"epochs": 80, "batch_size": 12, "learning_rate": 5e-3, "warmup": 0.0, "resample": "epoch"}
    done = unlearn(make_task(), DeletionRequest(forget), "random_label", settings=settings)
    assert isinstance(done.model, CausalLM)
    both = [done.model.score([(r["prompt"], letter) for r in forget]) for letter in "AB"]  # type: ignore[call-overload, index]
    gaps = [abs(float(a.log_prob[0] - b.log_prob[0])) for a, b in zip(*both, strict=True)]
    assert max(gaps) < 1.5, "near even odds"
    assert done.config["labels"]["true_by_chance"] == 0.5


def test_its_settings() -> None:
    method, _ = settle(RandomLabel, {})
    assert method.required() == ()
    assert settle(RandomLabel, {"retain": "kl"})[0].required() == ("retain",)


# ---- classifiers ---------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), classes=st.integers(2, 7))
def test_a_label_that_is_left_out_is_never_drawn_and_the_others_are_alike(seed: int, classes: int) -> None:
    drawn = Counter(draw_label(f"id{i}", classes, seed, without=1) for i in range(200))
    assert 1 not in drawn
    assert set(drawn) <= set(range(classes))
    if classes > 2:
        assert stats.chisquare([drawn[c] for c in range(classes) if c != 1]).pvalue > 1e-6


def test_classes_are_drawn_by_id_alone(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    encoded = task.encode(tiny_rows("table", range(8)))
    once = wrong_classes(encoded, 3, "once", 0)
    assert (once.targets != encoded.targets).all()
    backwards = wrong_classes(encoded.take(range(7, -1, -1)), 3, "once", 0)
    assert dict(zip(once.ids, once.targets.tolist(), strict=True)) == dict(
        zip(backwards.ids, backwards.targets.tolist(), strict=True)
    )
    every = wrong_classes(encoded, 3, "epoch", 0)
    assert len(every) == 16
    with_truth = wrong_classes(encoded, 3, "epoch", 0, exclude=False)
    assert len(with_truth) == 24


@pytest.mark.parametrize("name", ["table", "resnet", "bert"])
def test_a_classifier_learns_the_labels(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    request = DeletionRequest(tiny_rows(name, range(6)), tiny_rows(name, range(10, 30)))
    settings = {"epochs": 60, "learning_rate": 1e-2, "warmup": 0.0}
    done = unlearn(task, request, "random_label", settings=settings)
    assert done.config["labels"] == {"options": [3, 3], "true_by_chance": 0.0}
    labels = wrong_classes(task.encode(request.forget), 3, "once", 0)
    loss = done.model.statistics(labels).nll.mean()
    assert loss < 0.7 * task.statistics(labels).nll.mean()


def test_options_of_a_language_model_are_refused_for_a_classifier(tiny_predictor: Any, tiny_rows: Any) -> None:
    with pytest.raises(BadInput, match="labels of a tabular_classifier are its classes"):
        unlearn(
            tiny_predictor("table"),
            DeletionRequest(tiny_rows("table", range(6))),
            "random_label",
            settings={"options_column": "options"},
        )
