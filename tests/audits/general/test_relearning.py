from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expunge.audits.general.relearning import Relearning
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def fit(lm: CausalLM, request: DeletionRequest, steps: int, rate: float, sign: int) -> CausalLM:
    pairs = list(zip(request.forget["prompt"], request.forget["answer"], strict=True))
    optimiser = torch.optim.AdamW(lm.model.parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        (sign * lm.answer_nll(pairs)).backward()
        optimiser.step()
    lm.model.zero_grad()
    return lm


def test_hidden_knowledge_comes_back_and_absent_knowledge_does_not(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """Eight steps of gradient ascent hide what was learnt by heart; the half not shown comes back with the other."""
    knowing = fit(make_lm(0), request_, 60, 3e-3, +1)
    hidden = fit(knowing.copy(), request_, 8, 1e-3, -1)
    models = {"unlearned": hidden, "original": knowing, "oracle": make_lm(1)}
    settings = {"steps": (0, 4, 16), "learning_rates": (1e-5, 3e-3), "selection_steps": 4, "split": "examples"}
    finding = run_one(Relearning(Relearning.Config(**settings, level=0.5)), Observations(models, request_))
    assert finding.status == "measured", finding.note
    assert finding.attempted["learning rate"] == 3e-3
    assert finding.attempted["shown"] == finding.attempted["tested"] == 4
    u, o = finding.estimates["unlearned"], finding.estimates["oracle"]
    assert u["heldout_before"].value < 0.1
    assert u["heldout_after"].value > 0.4
    assert o["heldout_after"].value < 0.1
    assert u["area"].value > o["area"].value
    assert u["steps_to_recover"].value in (4.0, 16.0)
    assert u["examples_to_recover"].value == 4 * u["steps_to_recover"].value
    assert o["steps_to_recover"].value is None
    assert "not reached" in o["steps_to_recover"].note
    assert finding.estimates["original"]["steps_to_recover"].value == 0.0
    held, shown = finding.evidence
    assert held.knowing_is == "low"
    assert not set(held.values["unlearned"]) & set(shown.values["unlearned"])
    assert held.control["unlearned"]
    assert not shown.control
    assert [step for step, _ in finding.plots[0].series["oracle"]] == [0, 4, 16]


def test_copies_are_paid_for(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    seen = Observations({"unlearned": make_lm(0)}, request_)
    run_one(Relearning(Relearning.Config(steps=(0, 3), learning_rates=(1e-3,))), seen)
    assert seen.cost()["unlearned"].backwards == 3


def test_no_original_no_level(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    seen = Observations({"unlearned": make_lm(0)}, request_)
    finding = run_one(Relearning(Relearning.Config(steps=(0, 1), learning_rates=(1e-3,))), seen)
    assert finding.estimates["unlearned"]["steps_to_recover"].value is None
    assert "original" in finding.estimates["unlearned"]["steps_to_recover"].note


def test_too_few_examples_is_no_data(make_lm: Callable[..., CausalLM], make_examples: Callable) -> None:
    finding = run_one(Relearning(), Observations({"unlearned": make_lm(0)}, DeletionRequest(make_examples(range(1)))))
    assert finding.status == "no data"


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": (1, 2)},
        {"steps": (0, 4, 2)},
        {"steps": (0,)},
        {"on": ()},
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
    ],
)
def test_settings_that_make_no_curve_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError):
        Relearning.Config(**settings)
    assert issubclass(BadInput, ValueError)


def test_other_text_and_adapters_are_courses_of_their_own(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    settings = {"steps": (0, 2), "learning_rates": (1e-3,), "on": ("forget", "related", "unrelated")}
    models = {"unlearned": make_lm(0), "oracle": make_lm(1)}
    audit = Relearning(Relearning.Config(**settings, weights=("all", "lora")))
    finding = run_one(audit, Observations(models, request_))
    assert finding.status == "measured", finding.note
    assert len(finding.tables[0].rows) == 6 * 2
    statistics = {evidence.statistic for evidence in finding.evidence}
    assert {"relearned_heldout_nll", "relearned_heldout_nll_related_lora", "relearned_trained_nll"} <= statistics
    assert not {s for s in statistics if s.startswith("relearned_trained") and "related" in s}
    values = [e.values["unlearned"] for e in finding.evidence if e.statistic.startswith("relearned_heldout")]
    assert len({tuple(sorted(found.items())) for found in values}) == 6


def test_unrelated_text_of_the_users(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("The café serves soup.\n\nHe moved\nto Velburg.\n", encoding="utf-8")
    audit = Relearning(
        Relearning.Config(steps=(0, 1), learning_rates=(1e-3,), on=("unrelated",), text=tmp_path / "text.txt")
    )
    finding = run_one(audit, Observations({"unlearned": make_lm(0)}, request_))
    assert finding.status == "measured", finding.note
    with pytest.raises(ValueError, match="not a file"):
        Relearning.Config(text=tmp_path / "absent.txt")


def test_related_text_needs_a_retain_set(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    audit = Relearning(Relearning.Config(on=("related",)))
    finding = run_one(audit, Observations({"unlearned": make_lm(0)}, DeletionRequest(request_.forget)))
    assert finding.status == "no data"
    assert "retain" in finding.note
