"""WGA: by hand, its gradient as weighted gradient ascent, and in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.base import settle
from expunge.methods.language.wga import WGA, WGAConfig, wga_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.padded import Padded

nlls = st.lists(st.floats(0, 30), min_size=1, max_size=8)


def test_two_tokens_by_hand() -> None:
    # p = 1/2 and 1/4; -p^2 * (-log p).
    got = wga_loss(torch.tensor([math.log(2), math.log(4)], dtype=torch.float64), 2.0)
    expected = torch.tensor([-0.25 * math.log(2), -0.0625 * math.log(4)], dtype=torch.float64)
    torch.testing.assert_close(got, expected)


@given(st.integers(0, 10**6), st.floats(0, 8))
def test_the_gradient_is_that_of_ascent_weighted_by_a_power_of_p(seed: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(6, (4,), generator=generator)
    loss = wga_loss(F.cross_entropy(logits, targets, reduction="none"), beta).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    probs = logits.detach().softmax(-1)
    p = probs.gather(1, targets[:, None])
    # d(-w nll)/dz = -w (softmax - onehot), with w held fixed.
    torch.testing.assert_close(gradient, -(p**beta) * (probs - F.one_hot(targets, 6)))


@given(nlls, st.floats(0, 8))
def test_the_loss_is_bounded_where_ascent_is_not(values: list[float], beta: float) -> None:
    nll = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(wga_loss(nll, 0.0), -nll)
    loss = wga_loss(nll, beta)
    assert (loss <= 0).all()
    if beta > 0:
        assert (loss >= -1 / (math.e * beta) - 1e-12).all()  # x exp(-beta x) peaks at 1 / (e beta)


def test_defaults_are_the_reference_s() -> None:
    method, train = settle(WGA, {})
    given_ = method.config
    assert (given_.beta, given_.forget_weight, given_.retain_weight, given_.retain) == (1.0, 1.0, 1.0, "nll")
    assert (train.epochs, train.learning_rate) == (5, 1e-5)
    forget, retain = method.objective().terms  # type: ignore[attr-defined]
    assert (forget.reduction, retain.reduction) == ("token_mean", "token_mean")
    assert WGA(WGAConfig(retain="none")).required() == ()


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_the_loop_averages_over_the_tokens_of_the_step_however_it_is_cut(
    make_task: Callable[..., CausalLM], request_: DeletionRequest, beta: float
) -> None:
    task = make_task()
    with torch.no_grad():
        nll = task.statistics(task.encode(request_.forget)).nll
    expected = float(-(nll.exp() ** -beta * nll).mean())
    common = {"max_steps": 2, "batch_size": 6, "learning_rate": 1e-3, "warmup": 0.0, "beta": beta}
    runs = [unlearn(task, request_, "wga", settings={**common, "micro_batch_size": m}) for m in (None, 2, 1)]
    for run in runs:
        assert run.training is not None
        assert run.training.history[0]["loss/wga"] == pytest.approx(expected, rel=1e-4)
        for key in ("loss", "gradient_norm"):
            assert run.training.history[1][key] == pytest.approx(runs[0].training.history[1][key], rel=1e-3)  # type: ignore[union-attr]


def test_parity_loses_the_weight_of_tokens_whose_probability_underflows() -> None:
    nll = torch.tensor([2.0, 200.0])
    assert wga_loss(nll, 0.01).tolist() == pytest.approx([-2 * math.exp(-0.02), -200 * math.exp(-2)])
    assert wga_loss(nll, 0.01, parity=True).tolist() == pytest.approx([-2 * math.exp(-0.02), 0.0])
    wide = nll.double()
    torch.testing.assert_close(wga_loss(wide, 0.01, parity=True), wga_loss(wide, 0.01))
    values = {p: WGA(WGAConfig(beta=0.01, parity=p)).objective().terms[0].values for p in (False, True)}
    stats = Padded(torch.tensor([[[0.0, -200.0], [0.0, 0.0]]]), torch.tensor([[-100, 1]])).statistics()
    assert [values[p](stats).item() for p in (False, True)] == pytest.approx([-200 * math.exp(-2), 0.0])
