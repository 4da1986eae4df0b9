from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from expunge.audits.language.soft_prompt import SoftPrompt, signed_step
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_signed_step_by_hand() -> None:
    moved = signed_step(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, -0.1, 0.0]), 0.25)
    assert moved.tolist() == [0.75, 1.25, 1.0]


def test_a_guard_falls_to_a_soft_prompt_and_ignorance_does_not(
    guarded: CausalLM, make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """Trained on one half, the soft prompt opens the other half of a model that knows; not of one that never knew."""
    settings = {"steps": (0, 20, 60), "vectors": 4, "attacks": ("universal",), "split": "examples"}
    audit = SoftPrompt(SoftPrompt.Config(**settings, learning_rate=0.03))
    finding = run_one(audit, Observations({"unlearned": guarded, "oracle": make_lm(3)}, request_))
    assert finding.status == "measured", finding.note
    u, o = finding.estimates["unlearned"], finding.estimates["oracle"]
    assert u["heldout_before"].value < 0.4
    assert u["heldout_gain"].value > 0.08
    assert u["heldout_gain"].value > 3 * o["heldout_gain"].value
    assert u["area_excess"].value > 0
    held, _ = finding.evidence
    assert held.statistic == "soft_prompt_nll"
    assert held.control["unlearned"]


def test_per_prompt_pulls_towards_the_opening_alone(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """More steps make the opening likelier; no answer enters, so the same vectors follow from other answers."""
    audit = SoftPrompt(SoftPrompt.Config(steps=(0, 5), vectors=3, step_size=0.01, target="in town"))
    lm = make_lm(0)
    lm.model.requires_grad_(False)
    pairs = [(row["prompt"], row["answer"]) for row in request_.forget.to_list()]
    asked = [(prompt, "in town") for prompt, _ in pairs]

    def opening(steps: int) -> float:
        scores = audit._each(lm, [(prompt, "in town") for prompt, _ in asked], steps, 0)
        return sum(s.nll for s in scores)

    scored = audit._each(lm, pairs, 5, 0)
    assert [len(s) for s in scored] == [len(s) for s in lm.score(pairs)]
    assert [s.text for s in scored] == [answer for _, answer in pairs]
    assert all(abs(s.nll) < 50 for s in scored)
    # One at a time or many at once: each question has vectors of its own.
    alone = [audit._each(lm, [pair], 5, 0)[0].nll for pair in pairs[:3]]
    assert alone == pytest.approx([s.nll for s in scored[:3]], abs=1e-4)
    assert opening(5) != opening(0)


def test_placeholders_do_not_matter(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    """With a begin-of-sequence token and a chat template the vectors go where they should, and scores are finite."""
    for tokenizer in ({"bos": True}, {"chat": True}, {"pad_is_eos": True}):
        audit = SoftPrompt(SoftPrompt.Config(steps=(0, 2), vectors=2))
        finding = run_one(audit, Observations({"unlearned": make_lm(0, **tokenizer)}, request_))
        assert finding.status == "measured", finding.note
        statistics = {e.statistic for e in finding.evidence}
        assert statistics == {"soft_prompt_nll", "soft_prompt_nll_per_prompt"}


@pytest.mark.parametrize("settings", [{"steps": (0,)}, {"steps": (1, 5)}, {"vectors": 0}, {"target": ""}])
def test_no_budget_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError):
        SoftPrompt.Config(**settings)
