from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from expunge.audits.language.activation_steering import (
    ActivationSteering,
    _names,
    _Steering,
    difference,
)
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_difference_by_hand() -> None:
    assert difference(torch.tensor([3.0, 1.0]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])).tolist() == [1.5, 0.5]


def test_at_strength_zero_nothing_changes_by_a_bit(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    lm = make_lm(0)
    audit = ActivationSteering(ActivationSteering.Config(strengths=(0, 1.0), directions=("anonymised", "means")))
    finding = run_one(audit, Observations({"unlearned": lm, "oracle": make_lm(1)}, request_))
    assert finding.status == "measured", finding.note
    plain = {
        i: s.probability for i, s in Observations({"unlearned": lm}, request_).scores("unlearned", "forget").items()
    }
    tested = finding.evidence[0].values["unlearned"]
    mean = sum(plain[i] for i in tested) / len(tested)
    assert finding.plots[0].series["unlearned"][0][1] == pytest.approx(mean, rel=1e-5)
    curves = [plot.series["unlearned"] for plot in finding.plots]
    assert {curve[0][1] for curve in (curves[0], curves[1])} != {curve[1][1] for curve in (curves[0], curves[1])}
    assert [e.statistic for e in finding.evidence] == ["steered_nll", "steered_nll_means"]


def test_zero_strength_is_bitwise_the_model(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    audit, lm = ActivationSteering(ActivationSteering.Config(strengths=(0, 1.0), layers=(0,))), make_lm(0)
    seen = Observations({"unlearned": lm}, request_)
    material = audit.material(seen)
    assert not isinstance(material, str)
    steps = audit.attack(lm, material, audit.courses(seen)[0], audit.choose(seen, material))
    pairs = list(material.tested.values())
    (_, at_zero), (_, at_one) = ((budget, score(pairs)) for budget, score in steps)
    plain = lm.score(pairs)
    assert all((a.log_prob == b.log_prob).all() for a, b in zip(at_zero, plain, strict=True))
    assert not all((a.log_prob == b.log_prob).all() for a, b in zip(at_one, plain, strict=True))


def test_the_direction_is_own_less_another_name(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    """With one other name, own state less direction is the state at the question about that other."""
    audit, lm = ActivationSteering(ActivationSteering.Config(others=1)), make_lm(0)
    seen = Observations({"unlearned": lm}, request_)
    material = audit.material(seen)
    assert not isinstance(material, str)
    names = _names(seen, material)
    steering = _Steering(audit, lm, material, names, 1, "anonymised", False)
    prompt = str(next(iter(material.tested.values()))[0])
    swapped = steering._last([prompt]) - steering._vectors([prompt])
    start, end = names[prompt]
    others = {text[slice(*span)] for text, span in names.items()} - {prompt[start:end]}
    states = steering._last([prompt[:start] + other + prompt[end:] for other in sorted(others)])
    assert min((states - swapped).abs().amax(-1)) < 1e-5
    drawn = _Steering(audit, lm, material, names, 1, "anonymised", True)._vectors([prompt])
    assert drawn.norm().item() == pytest.approx(steering._vectors([prompt]).norm().item(), rel=1e-5)
    assert not torch.allclose(drawn, steering._vectors([prompt]))


def test_nothing_to_anonymise_is_said(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    same = request_.forget.map(
        lambda row, k: {"prompt": "Who?", "answer": f"in {k}", "group": f"g{k}"}, with_indices=True
    )
    finding = run_one(ActivationSteering(), Observations({"unlearned": make_lm(0)}, DeletionRequest(same)))
    assert finding.status == "no data"
    assert "name" in finding.note


@pytest.mark.parametrize("strengths", [(0,), (1.0, 2.0), ()])
def test_no_strength_is_no_attack(strengths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strengths"):
        ActivationSteering.Config(strengths=strengths)
