from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from expunge.audits.base import Finding
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.audits.tamperer import Course, Material, Score, TamperConfig, Tamperer, budgets_from_zero
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


class Noise(Tamperer):
    """Adds ever more noise to the output head; the null adds none."""

    id = "noise"
    title = "Does noise bring it back?"
    paper = "none"
    axis, label, held, shown = "noise", "Noise", "noisy_nll", "noisy_shown_nll"
    Config = TamperConfig

    def budgets(self) -> Sequence[float]:
        return (0.0, 1.0, 2.0)

    def courses(self, seen: Observations) -> Sequence[Course]:
        return (Course(), Course("none", "no noise", null=True))

    def attack(
        self, victim: CausalLM, material: Material, course: Course, choice: Any
    ) -> Iterator[tuple[float, Score]]:
        luck = torch.Generator().manual_seed(material.seed)
        head = victim.model.get_output_embeddings().weight
        for budget in self.budgets():
            yield budget, victim.score
            with torch.no_grad():
                head += (0.0 if course.null else 1.0) * torch.randn(head.shape, generator=luck)


class Broken(Noise):
    """Ends in NaN."""

    def attack(self, victim: CausalLM, *rest: Any) -> Iterator[tuple[float, Score]]:
        for budget in self.budgets():
            yield budget, victim.score
            with torch.no_grad():
                victim.model.get_output_embeddings().weight.fill_(float("nan"))


def attacked(models: dict[str, CausalLM], request: DeletionRequest, audit: type[Tamperer] = Noise) -> Finding:
    return run_one(audit(audit.Config()), Observations(models, request))


def test_the_same_attack_on_every_model(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    finding = attacked({"unlearned": make_lm(0), "oracle": make_lm(0)}, request_)
    assert finding.status == "measured", finding.note
    assert finding.estimates["unlearned"]["area"] == finding.estimates["oracle"]["area"]
    assert finding.estimates["unlearned"]["area_excess"].value == 0.0
    assert finding.estimates["unlearned"]["null_gain"].value == 0.0
    assert finding.estimates["oracle"]["area_excess"].value is None
    assert len(finding.plots[0].series["unlearned"]) == 3
    assert {row[0] for row in finding.tables[0].rows} == {"the attack", "no noise (null)"}
    assert [e.statistic for e in finding.evidence] == ["noisy_nll", "noisy_shown_nll"]


def test_two_oracles_are_compared_with_each_other(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    models = {"unlearned": make_lm(0), "oracle": make_lm(1), "oracle-2": make_lm(2)}
    e = {name: found["area_excess"].value for name, found in attacked(models, request_).estimates.items()}
    assert e["oracle"] == pytest.approx(-e["oracle-2"])
    areas = {name: found["area"].value for name, found in attacked(models, request_).estimates.items()}
    assert e["unlearned"] == pytest.approx(areas["unlearned"] - (areas["oracle"] + areas["oracle-2"]) / 2)


def test_a_model_under_two_names_is_attacked_once(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    lm = make_lm(0)
    seen = Observations({"unlearned": lm, "original": lm}, request_)
    finding = run_one(Noise(), seen)
    assert finding.estimates["unlearned"] == finding.estimates["original"]
    assert list(seen.cost()) == ["unlearned"]


def test_without_holdout_and_retain_it_says_so(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    finding = attacked({"unlearned": make_lm(0)}, DeletionRequest(request_.forget))
    assert "retain" in finding.estimates["unlearned"]["retain_change"].note
    assert finding.estimates["unlearned"]["area_excess"].note.startswith("no oracle")
    assert [e.statistic for e in finding.evidence] == ["noisy_nll"]


def test_a_model_that_breaks_is_a_crash(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    finding = attacked({"unlearned": make_lm(0)}, request_, Broken)
    assert finding.status == "crashed"
    assert "budget 1" in finding.note


@pytest.mark.parametrize("budgets", [(), (0,), (1, 2), (0, 2, 1), (0, 1, 1)])
def test_a_budget_of_zero_is_refused(budgets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two ascending steps"):
        budgets_from_zero(budgets, "steps")
