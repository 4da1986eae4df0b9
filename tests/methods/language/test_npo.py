"""NPO against its formula: values, the weight of its gradient, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.base import settle
from expunge.methods.language.npo import NPO, muse_npo_loss, npo_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_values_by_hand() -> None:
    # At the start d = 0: -(2/beta) log(1/2). With beta d = log 3, sigmoid = 3/4.
    found = npo_loss(torch.tensor([5.0, math.log(3) / 0.1]), torch.tensor([5.0, 0.0]), 0.1)
    assert found.tolist() == pytest.approx([20 * math.log(2), 20 * math.log(4 / 3)], rel=1e-5)


@given(nll=st.floats(0, 300), reference=st.floats(0, 300), beta=st.floats(0.01, 5))
def test_the_gradient_is_ascent_with_a_weight_that_fades(nll: float, reference: float, beta: float) -> None:
    """d loss / d nll = -2 sigmoid(-beta (nll - reference)), the paper's W."""
    value = torch.tensor([nll], dtype=torch.float64, requires_grad=True)
    npo_loss(value, torch.tensor([reference], dtype=torch.float64), beta).sum().backward()
    assert value.grad is not None
    weight = 2 / (1 + math.exp(min(700.0, beta * (nll - reference))))
    assert value.grad.item() == pytest.approx(-weight, rel=1e-9, abs=1e-12)


def test_the_weight_is_one_at_the_start_and_gone_once_forgotten() -> None:
    nll = torch.tensor([7.0, 7.0 + 400.0], requires_grad=True)
    npo_loss(nll, torch.tensor([7.0, 7.0]), 0.1).sum().backward()
    assert nll.grad is not None
    assert nll.grad.tolist() == pytest.approx([-1.0, 0.0], abs=1e-12)


@given(d=st.floats(-20, 20))
def test_towards_beta_zero_it_is_gradient_ascent(d: float) -> None:
    """L - (2/beta) log 2 -> -d."""
    beta = 1e-6
    loss = npo_loss(torch.tensor([d], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), beta).item()
    assert loss - 2 / beta * math.log(2) == pytest.approx(-d, abs=1e-3)


def test_long_texts_do_not_overflow() -> None:
    found = npo_loss(torch.tensor([0.0, 1e6]), torch.tensor([1e6, 0.0]), 0.1)
    assert found.tolist() == pytest.approx([2e6, 0.0])


def test_it_sums_over_tokens_and_starts_at_the_known_value(task: CausalLM, request_: DeletionRequest) -> None:
    settings = {"epochs": 2, "learning_rate": 1e-2, "warmup": 0.0, "schedule": "constant"}
    done = unlearn(task, request_, "npo", settings=settings)
    assert done.training is not None
    assert done.training.history[0]["loss/npo"] == pytest.approx(20 * math.log(2), rel=1e-4)
    pairs = [(r["prompt"], r["answer"]) for r in request_.forget.to_list()]
    moved = unlearn(task, request_, "npo", settings={**settings, "max_steps": 1})
    after, before = moved.model.score(pairs), task.score(pairs)  # type: ignore[attr-defined]
    gaps = [b.log_prob.sum() - a.log_prob.sum() for a, b in zip(after, before, strict=True)]
    expected = sum(20 * math.log1p(math.exp(-0.1 * d)) for d in gaps) / len(gaps)
    assert done.training.history[1]["loss/npo"] == pytest.approx(expected, rel=1e-4)


def test_defaults_are_those_of_the_papers_code() -> None:
    config = settle(NPO, {})[0].config
    assert (config.beta, config.forget_weight, config.retain_weight, config.retain) == (0.1, 1.0, 1.0, "nll")


@given(seed=st.integers(0, 10**6), beta=st.floats(0.05, 3))
def test_what_muse_calls_npo_lowers_every_logit(seed: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, before = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    loss = muse_npo_loss(logits, before, beta)
    pairs = zip(logits.flatten().tolist(), before.flatten().tolist(), strict=True)
    plain = sum(2 / beta * math.log1p(math.exp(-beta * (b - z))) for z, b in pairs)
    assert loss.item() == pytest.approx(plain / 30)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient > 0).all()
    torch.testing.assert_close(gradient, 2 * torch.sigmoid(-beta * (before - logits.detach())) / 30)
