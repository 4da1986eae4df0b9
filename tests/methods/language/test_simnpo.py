"""SimNPO against its formula, and where paper and code put the margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.base import settle
from expunge.methods.language.simnpo import SimNPO, simnpo_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_values_by_hand() -> None:
    # beta (N/n - delta) = 4 (1.25 - 1) = 1; outside: 4 * 1.25 - 1 = 4.
    inside = simnpo_loss(torch.tensor([1.25]), 4.0, 1.0)
    outside = simnpo_loss(torch.tensor([1.25]), 4.0, 1.0, margin_outside=True)
    assert inside.item() == pytest.approx(0.5 * math.log1p(math.exp(-1)), rel=1e-6)
    assert outside.item() == pytest.approx(0.5 * math.log1p(math.exp(-4)), rel=1e-5)
    assert simnpo_loss(torch.tensor([0.0]), 4.5).item() == pytest.approx(2 / 4.5 * math.log(2), rel=1e-6)


@given(mean=st.floats(0, 20), beta=st.floats(0.1, 10), margin=st.floats(0, 5))
def test_the_gradient_is_ascent_with_a_weight_that_fades(mean: float, beta: float, margin: float) -> None:
    value = torch.tensor([mean], dtype=torch.float64, requires_grad=True)
    simnpo_loss(value, beta, margin).sum().backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(-2 / (1 + math.exp(beta * (mean - margin))), rel=1e-9)


def test_it_averages_over_tokens_with_the_weights_of_the_code(task: CausalLM, request_: DeletionRequest) -> None:
    done = unlearn(task, request_, "simnpo", settings={"epochs": 1, "beta": 0.2})  # 4.5 leaves nothing at this NLL
    means = [s.nll for s in task.score([(r["prompt"], r["answer"]) for r in request_.forget.to_list()])]
    expected = 0.125 * np.mean([2 / 0.2 * math.log1p(math.exp(-0.2 * m)) for m in means])
    assert done.training is not None
    assert done.training.history[0]["loss/simnpo"] == pytest.approx(expected, rel=1e-3)


def test_it_needs_no_reference() -> None:
    method, _ = settle(SimNPO, {})
    assert method.objective().reference("forget") == "none"  # type: ignore[attr-defined]
    config = method.config
    assert (config.beta, config.margin, config.forget_weight, config.retain_weight) == (4.5, 0.0, 0.125, 1.0)
