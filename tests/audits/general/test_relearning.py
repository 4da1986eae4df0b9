from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.general.relearning import Relearning, area_under, batches, first_step_at, split_halves
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=40),
    st.sampled_from(["auto", "groups", "examples"]),
    st.integers(0, 9),
)
def test_halves_are_halves(group_of: list[int], split: str, seed: int) -> None:
    ids = [f"e{k}" for k in range(len(group_of))]
    groups = {i: f"g{g}" for i, g in zip(ids, group_of, strict=True)}
    trained, tested = split_halves(ids, groups, split, seed)  # type: ignore[arg-type]
    assert sorted([*trained, *tested]) == sorted(ids)
    assert (trained, tested) == split_halves(ids[::-1], groups, split, seed)  # type: ignore[arg-type]
    whole = split == "groups" or (split == "auto" and len(set(group_of)) >= 4)
    if whole:
        assert not {groups[i] for i in trained} & {groups[i] for i in tested}
    else:
        assert abs(len(trained) - len(tested)) <= 1


def test_without_groups_examples_are_split() -> None:
    trained, tested = split_halves([f"e{k}" for k in range(10)], {}, "auto", 0)
    assert len(trained) == len(tested) == 5


def test_batches_show_every_example_once_per_round() -> None:
    order = [i for batch in islice(batches(["a", "b", "c", "d", "e"], 2, 0), 5) for i in batch]
    assert sorted(order[:5]) == sorted(order[5:]) == ["a", "b", "c", "d", "e"]


def test_area_by_hand() -> None:
    """Over log2(1 + step), steps 0, 1, 3 are at 0, 1, 2. Values 0, 1, 1: (0.5 + 1) / 2 = 0.75; a constant is itself."""
    assert area_under([(0, 0.0), (1, 1.0), (3, 1.0)]) == pytest.approx(0.75)
    assert area_under([(0, 0.3), (5, 0.3), (32, 0.3)]) == pytest.approx(0.3)


def test_first_step_by_hand() -> None:
    curve = [(0, 0.1), (2, 0.5), (4, 0.9)]
    assert first_step_at(curve, 0.5) == 2
    assert first_step_at(curve, 0.05) == 0
    assert first_step_at(curve, 0.95) is None


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
    "settings", [{"steps": (1, 2)}, {"steps": (0, 4, 2)}, {"learning_rates": ()}, {"learning_rates": (0.0,)}]
)
def test_settings_that_make_no_curve_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError):
        Relearning.Config(**settings)
    assert issubclass(BadInput, ValueError)
