"""The search: what it finds, that it goes on where it was, and the reference's start that does not move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from expunge.errors import BadInput
from expunge.forget_sets.base import Hold
from expunge.forget_sets.select import select_forget_set
from expunge.tasks.predictor import Predictor

QUICK: dict[str, Any] = {"iterations": 6, "unlearn_epochs": 5, "snap": 3, "unlearn_rate": 5e-3, "count": 12}


def chosen(examples: Dataset, learnt: Predictor, seed: int = 0, **settings: Any) -> set[str]:
    found = select_forget_set(examples, "worst_case", learnt, settings={**QUICK, **settings}, seed=seed)
    return set(found.request.forget["id"])


@pytest.mark.parametrize("more", [{}, {"form": "unrolled", "unlearn_rate": 0.3}, {"ascent": 1.0}, {"start": "fresh"}])
def test_what_others_teach_too_is_the_worst_to_forget(
    more: dict[str, Any], examples: Dataset, learnt: Predictor
) -> None:
    plain = dict(zip(examples["id"], examples["plain"], strict=True))
    found = chosen(examples, learnt, **more)
    assert len(found) == 12
    assert all(plain[identity] for identity in found), "none with a wrong label"


def test_from_a_random_set_nothing_moves(examples: Dataset, learnt: Predictor) -> None:
    drawn = set(select_forget_set(examples, "random", settings={"count": 12}, seed=5).request.forget["id"])
    small: dict[str, Any] = {"rate": 1e-3, "seed": 5}
    assert chosen(examples, learnt, parity=True, **small) == drawn
    assert chosen(examples, learnt, **small) != drawn


def test_the_history_says_what_happened(examples: Dataset, learnt: Predictor) -> None:
    heard: list[tuple[int, int, Mapping[str, float]]] = []
    found = select_forget_set(examples, "worst_case", learnt, settings=QUICK, heard=lambda *step: heard.append(step))
    assert [(done, of) for done, of, _ in heard] == [(k, 6) for k in range(1, 7)]
    assert [step for *_, step in heard] == list(found.history)
    assert found.history[-1]["chosen_loss"] < found.history[-1]["mean_loss"]
    assert sorted(found.scores.values())[-12:] == [1.0] * 12
    assert found.cost["backwards"] > 0


def test_a_stopped_search_goes_on_where_it_was(examples: Dataset, learnt: Predictor) -> None:
    kept: list[Mapping[str, Sequence[float]]] = []
    whole = select_forget_set(examples, "worst_case", learnt, settings=QUICK, hold=Hold(keep=kept.append))
    steps: list[int] = []
    rest = select_forget_set(
        examples, "worst_case", learnt, settings=QUICK, hold=Hold(load=lambda: kept[3]),
        heard=lambda done, of, values: steps.append(done),
    )  # fmt: skip
    assert steps == [5, 6]
    assert rest.scores == whole.scores
    assert list(rest.history) == list(whole.history)
    assert rest.request.fingerprint == whole.request.fingerprint


def test_classes_are_weighted_as_wholes(examples: Dataset, learnt: Predictor) -> None:
    settings = {**QUICK, "unit": "class", "count": 1}
    found = select_forget_set(examples, "worst_case", learnt, settings=settings)
    assert found.request.scenario == "class"
    assert len(set(found.request.forget["label"])) == 1
    assert set(found.scores) == {"0", "1", "2"}
    assert np.isclose(sum(found.scores.values()), 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "both"}, "form"),
        ({"rate": 0}, "rate"),
        ({"iteration": 3}, "iterations"),
        ({"rate": float("nan")}, "rate"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str, examples: Dataset, learnt: Predictor) -> None:
    with pytest.raises(BadInput, match=words):
        select_forget_set(examples, "worst_case", learnt, settings=settings)
