"""FLAT: the parts that its reproduction is measured with, and its judgement."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from expunge.reproductions.flat import NEVER_SAID, TAUGHT, FLATReproduction, distance, strangers_of, template_share
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, small_llama


@pytest.fixture
def model(tiny_tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return small_llama(tiny_tokenizer, Shape(hidden=16, layers=1, heads=2), 0)


def test_distance_is_that_of_the_weights_as_one_vector(model: CausalLM) -> None:
    other = model.copy()
    with torch.no_grad():
        for _, parameter in other.named_parameters():
            parameter += 0.5
    count = sum(p.numel() for _, p in model.named_parameters())
    assert distance(model, other) == pytest.approx(0.5 * count**0.5, rel=1e-5)
    assert distance(model, model) == 0


def test_templates_are_counted_up_to_case_and_space(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalLM, "generate", lambda self, prompts, limits: ["I have NO  idea.", "Nurse.", "", "x"])
    assert template_share(model, ["a", "b", "c", "d"], TAUGHT) == 0.25


def test_strangers_are_not_in_the_world_and_get_all_templates() -> None:
    asked = strangers_of(900, 10)
    assert len({prompt for prompt, _ in asked}) == 20
    assert {answer for _, answer in asked} == set(TAUGHT)
    assert not set(TAUGHT) & set(NEVER_SAID)


def test_a_seed_that_never_forgot_settles_nothing() -> None:
    checks = FLATReproduction().judge([{"kept_before": 1.0}])
    assert not any(check.holds for check in checks)
    assert "not in every seed was the level reached" in checks[2].detail
