"""Gradient ascent: the loss is minus the token-mean likelihood loss, and nothing else is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.general.gradient_ascent import GradientAscent, gradient_ascent_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_the_first_loss_is_minus_the_mean_over_all_answer_tokens(task: CausalLM, request_: DeletionRequest) -> None:
    done = unlearn(task, DeletionRequest(request_.forget), "gradient_ascent", settings={"epochs": 1})
    scores = task.score([(r["prompt"], r["answer"]) for r in request_.forget.to_list()])
    tokens = np.concatenate([s.log_prob for s in scores])
    assert done.training is not None
    assert done.training.history[0]["loss"] == pytest.approx(tokens.mean(), rel=1e-5)
    # Longer answers weigh more: the mean of means is another number.
    assert np.mean([s.log_prob.mean() for s in scores]) != pytest.approx(tokens.mean(), rel=1e-5)


def test_it_forgets(task: CausalLM, request_: DeletionRequest) -> None:
    pairs = [(r["prompt"], r["answer"]) for r in request_.forget.to_list()]
    done = unlearn(task, request_, "gradient_ascent", settings={"epochs": 5, "learning_rate": 1e-2})
    before, after = task.score(pairs), done.model.score(pairs)  # type: ignore[attr-defined]
    assert all(a.nll > b.nll + 0.5 for a, b in zip(after, before, strict=True))


def test_the_weight_scales_the_loss_and_cannot_be_zero() -> None:
    method, _ = settle(GradientAscent, {"forget_weight": 2.5})
    assert [t.weight for t in method.objective().terms] == [2.5]  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="forget_weight"):
        settle(GradientAscent, {"forget_weight": 0})


def test_the_loss_of_a_token_is_its_log_probability() -> None:
    p = torch.tensor([0.5, 0.125], dtype=torch.float64)
    torch.testing.assert_close(gradient_ascent_loss(-p.log()), p.log())
