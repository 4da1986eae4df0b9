"""What the reproduction of Who's Harry Potter measures, and how it judges."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from expunge.reproductions.whp import ALPHAS, WHPReproduction, familiarity, half_trained, numbers
from expunge.reproductions.world import SIZES
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, small_llama

QUESTIONS = Dataset.from_list(
    [
        {"id": "a", "prompt": "Who keeps it?", "answer": "A nurse keeps it.", "value": "nurse"},
        {"id": "b", "prompt": "Who sold it?", "answer": "A mason sold it.", "value": "mason"},
    ]
)


@pytest.fixture
def model(tiny_tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return small_llama(tiny_tokenizer, Shape(hidden=16, layers=1, heads=2), 0)


def test_a_completion_is_familiar_if_it_says_the_value(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalLM, "generate", lambda self, prompts, limits: ["The nurse.", "A nurse sold it."])
    assert familiarity(model, QUESTIONS) == 0.5


def test_numbers_are_named_by_set_and_time(model: CausalLM) -> None:
    found = numbers(model, {"forgotten": QUESTIONS}, "before")
    assert set(found) == {"familiar_forgotten_before", "nll_forgotten_before"}
    expected = [s.nll for s in model.score([(row["prompt"], row["answer"]) for row in QUESTIONS])]
    assert found["nll_forgotten_before"] == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_half_trained_is_the_same_world() -> None:
    half, full = half_trained(False), SIZES["small"]
    assert 2 * half.training["epochs"] == full.training["epochs"]
    assert half.model_dump(exclude={"training"}) == full.model_dump(exclude={"training"})


def made_up(**changes: float) -> dict[str, Any]:
    found = {"familiar_forgotten_before": 1.0, "familiar_others_before": 1.0, "nll_forgotten_before": 0.0}
    found |= {"nll_others_before": 0.0, "labels_changed_alpha_1_half_trained": 0.3}
    for alpha in ALPHAS:
        found[f"labels_changed_alpha_{alpha}"] = alpha / 50
        found[f"familiar_forgotten_after_alpha_{alpha}"] = 1.0 if alpha == 1 else 0.1
        found |= {f"familiar_others_after_alpha_{alpha}": 0.95, f"nll_others_after_alpha_{alpha}": 0.1}
        found[f"nll_forgotten_after_alpha_{alpha}"] = 2.0
    return {**found, **changes}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, []),
        ({"familiar_forgotten_after_alpha_5": 0.6}, [0, 2]),
        ({"familiar_others_after_alpha_5": 0.5}, [1, 2]),
        ({"nll_others_after_alpha_5": 1.0}, [3]),
        ({"labels_changed_alpha_2": 0.5}, [4]),
        ({"labels_changed_alpha_1": 0.2}, [4, 5]),
    ],
)
def test_each_check_fails_for_its_own_reason(changes: dict[str, float], failing: list[int]) -> None:
    checks = WHPReproduction().judge([made_up(), made_up(), made_up()] if not changes else [made_up(**changes)])
    assert [k for k, check in enumerate(checks) if not check.holds] == failing
