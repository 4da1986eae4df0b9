from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from expunge.audits.language.gradient_norm import GradientNorm
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_scores_are_minus_the_mean_norm_over_tensors(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    lm = make_lm(0)
    finding = run_one(GradientNorm(GradientNorm.Config(order=1.0)), Observations({"unlearned": lm}, request_))
    row = request_.forget[1]
    loss = lm.answer_nll([(row["prompt"], row["answer"])])
    norms = [g.abs().sum() for g in torch.autograd.grad(loss, list(lm.model.parameters()))]
    expected = -float(torch.stack(norms).mean())
    assert finding.per_example["unlearned"][row["id"]]["gradient_norm"] == pytest.approx(expected, rel=1e-4)
    assert not GradientNorm.default
