"""SatImp: by hand, its gradient as weighted gradient ascent, and whose weights are whose."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.base import settle
from expunge.methods.language.satimp import SatImp, satimp_loss
from expunge.methods.language.wga import wga_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

nlls = st.lists(st.floats(0, 30), min_size=1, max_size=8)
powers = st.floats(0, 8)


def test_two_tokens_by_hand() -> None:
    # p = 1/2: 1/8 * 1/4 log 2; p = 1/4: 1/64 * 9/16 log 4.
    got = satimp_loss(torch.tensor([math.log(2), math.log(4)], dtype=torch.float64), 3.0, 2.0)
    expected = torch.tensor([-math.log(2) / 32, -9 * math.log(4) / 1024], dtype=torch.float64)
    torch.testing.assert_close(got, expected)


@given(st.integers(0, 10**6), powers, powers)
def test_the_gradient_is_that_of_weighted_ascent(seed: int, beta1: float, beta2: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(6, (4,), generator=generator)
    loss = satimp_loss(F.cross_entropy(logits, targets, reduction="none"), beta1, beta2).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    probs = logits.detach().softmax(-1)
    p = probs.gather(1, targets[:, None])
    torch.testing.assert_close(gradient, -(p**beta1) * (1 - p) ** beta2 * (probs - F.one_hot(targets, 6)))


@given(nlls, powers, powers)
def test_laws_of_the_weight(values: list[float], beta1: float, beta2: float) -> None:
    nll = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(satimp_loss(nll, beta1, 0.0), wga_loss(nll, beta1))
    torch.testing.assert_close(satimp_loss(nll, 0.0, 0.0), -nll)
    assert (satimp_loss(nll, beta1, beta2) <= 0).all()
    assert (satimp_loss(nll, beta1, beta2) >= wga_loss(nll, beta1) - 1e-12).all()


def test_a_certain_token_has_no_weight_and_no_nan() -> None:
    nll = torch.tensor([0.0, 1e-9, 200.0], requires_grad=True)
    loss = satimp_loss(nll, 5.0, 0.5)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert nll.grad is not None
    assert nll.grad[0] == 0
    # 1 - p keeps its digits where p rounds to 1: the weight is (1e-9)^0.5.
    assert float(nll.grad[1]) == pytest.approx(-(1e-9**0.5), rel=1e-4)


def test_forget_outweighs_retain_unless_the_reference_s_file_is_asked_for() -> None:
    def weights(**settings: object) -> tuple[float, float]:
        config = settle(SatImp, settings)[0].config
        return config.forget_weight, config.retain_weight

    assert weights() == (1.0, 0.1)
    assert weights(parity=True) == weights(parity=1) == weights(parity="yes") == (0.1, 1.0)
    assert weights(parity=True, retain_weight=3.0) == (0.1, 3.0)
    config = settle(SatImp, {"parity": True, "forget_weight": 2.0})[0].config
    assert (config.beta1, config.beta2, config.forget_weight) == (5.0, 1.0, 2.0)
    assert type(config)(**config.model_dump()) == config
    forget, retain = settle(SatImp, {"parity": True})[0].objective().terms  # type: ignore[attr-defined]
    assert (forget.weight, retain.weight) == (0.1, 1.0)


def test_the_loop_averages_over_the_tokens_of_the_step_however_it_is_cut(
    make_task: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    task = make_task()
    with torch.no_grad():
        p = task.statistics(task.encode(request_.forget)).nll.neg().exp()
    expected = float((p**0.5 * (1 - p) ** 2 * p.log()).mean())
    common = {"max_steps": 2, "batch_size": 6, "learning_rate": 1e-3, "warmup": 0.0, "beta1": 0.5, "beta2": 2}
    runs = [unlearn(task, request_, "satimp", settings={**common, "micro_batch_size": m}) for m in (None, 2, 1)]
    for run in runs:
        assert run.training is not None
        assert run.training.history[0]["loss/satimp"] == pytest.approx(expected, rel=1e-4)
        for key in ("loss", "gradient_norm"):
            assert run.training.history[1][key] == pytest.approx(runs[0].training.history[1][key], rel=1e-3)  # type: ignore[union-attr]


def test_parity_loses_the_weight_where_p_or_1_minus_p_underflows() -> None:
    nll = torch.tensor([0.5, 200.0, 1e-9])
    p = torch.tensor([0.5, 200.0, 1e-9], dtype=torch.float64).neg().exp()
    exact = (-(p**0.02) * (1 - p) ** 0.1 * nll).tolist()
    assert satimp_loss(nll, 0.02, 0.1).tolist() == pytest.approx(exact, rel=1e-5)
    assert satimp_loss(nll, 0.02, 0.1, parity=True).tolist() == pytest.approx([exact[0], 0.0, 0.0], rel=1e-5)
    torch.testing.assert_close(satimp_loss(nll[:1], 5.0, 1.0, parity=True), satimp_loss(nll[:1], 5.0, 1.0))
