"""SimNPO against its formula, and where paper and code put the margin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.base import settle
from expunge.methods.language.simnpo import SimNPO, simnpo_loss, simnpo_reference_loss
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


@given(seed=st.integers(0, 10**6), beta=st.floats(0.1, 8), margin=st.floats(0, 2))
def test_parity_divides_by_labels_that_nothing_predicts_too(seed: int, beta: float, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[1, 2, 0, -100], [-100, -100, 4, 3]])
    p = logits.softmax(-1)
    # Two tokens are predicted in each example; the first example has three labels.
    means = [-(p[0, 0, 2] * p[0, 1, 0]).log() / 3, -(p[1, 1, 4] * p[1, 2, 3]).log() / 2]
    plain = sum(2 / beta * torch.log1p(torch.exp(-beta * (m - margin))) for m in means) / 2
    ours = simnpo_reference_loss(logits, labels, beta, margin)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, plain)))
    labels[0] = -100
    assert simnpo_reference_loss(logits, labels, beta, margin).isnan()
