"""Gradient difference: -gamma CE(forget) + alpha L_retain, each a token mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.methods.base import settle
from expunge.methods.general.grad_diff import GradDiff, grad_diff_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.plan import Plan


def first(task: CausalLM, request: DeletionRequest, **settings: Any) -> dict[str, float]:
    done = unlearn(task, request, "grad_diff", settings={"max_steps": 1, "batch_size": 4, **settings})
    assert done.training is not None
    return done.training.history[0]


def token_mean(task: CausalLM, request: DeletionRequest, role: str) -> float:
    streams: Any = {"forget": task.encode(request.forget), "retain": task.encode(request.retain)}  # type: ignore[arg-type]
    chosen = Plan(streams, "forget", batch_size=4, epochs=10, max_steps=1, seed=0).step(0).examples[role]  # type: ignore[index]
    rows = getattr(request, role).to_list()
    scores = task.score([(rows[i]["prompt"], rows[i]["answer"]) for i in chosen])
    return -float(np.concatenate([s.log_prob for s in scores]).mean())


def test_both_halves_are_token_means_with_their_weights(task: CausalLM, request_: DeletionRequest) -> None:
    record = first(task, request_, forget_weight=0.5, retain_weight=3.0)
    assert record["loss/forget_ascent"] == pytest.approx(-0.5 * token_mean(task, request_, "forget"), rel=1e-5)
    assert record["loss/retain_nll"] == pytest.approx(3 * token_mean(task, request_, "retain"), rel=1e-5)
    assert record["loss"] == pytest.approx(record["loss/forget_ascent"] + record["loss/retain_nll"], rel=1e-6)


@pytest.mark.parametrize("positions", ["answer", "attended", "all"])
def test_the_divergence_from_itself_is_zero_and_then_grows(
    task: CausalLM, request_: DeletionRequest, positions: str
) -> None:
    settings = {"retain": "kl", "retain_positions": positions, "epochs": 3, "batch_size": 4, "learning_rate": 1e-2}
    done = unlearn(task, request_, "grad_diff", settings=settings)
    assert done.training is not None
    kl = [record["loss/retain_kl"] for record in done.training.history]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-3


def test_parity_divides_by_all_positions_as_flatten_and_batchmean_do(task: CausalLM, request_: DeletionRequest) -> None:
    """The reference averages over B x T, prompt and padding too (spec, section 0)."""
    settings = {"retain": "kl", "parity": True, "epochs": 2, "batch_size": 6, "learning_rate": 1e-2, "warmup": 0.0}
    done = unlearn(task, request_, "grad_diff", settings=settings)
    assert done.training is not None
    moved = unlearn(task, request_, "grad_diff", settings={**settings, "max_steps": 1, "schedule": "constant"}).model
    streams: Any = {"forget": task.encode(request_.forget), "retain": task.encode(request_.retain)}  # type: ignore[arg-type]
    chosen = Plan(streams, "forget", batch_size=6, epochs=2, max_steps=None, seed=0).step(1).examples["retain"]
    tokens = [torch.tensor(streams["retain"].tokens[i]) for i in chosen]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
    with torch.no_grad():
        logits = [m.model(input_ids=ids, attention_mask=mask).logits for m in (task, moved)]  # type: ignore[attr-defined]
    old, new = (z.log_softmax(-1).flatten(0, 1) for z in logits)
    expected = torch.nn.functional.kl_div(new, old, reduction="batchmean", log_target=True)
    assert done.training.history[1]["loss/retain_kl"] == pytest.approx(float(expected), rel=1e-3)


def test_a_half_of_weight_zero_is_not_there(task: CausalLM, request_: DeletionRequest) -> None:
    assert "loss/retain_nll" not in first(task, DeletionRequest(request_.forget), retain_weight=0.0)
    assert "loss/retain_nll" not in first(task, DeletionRequest(request_.forget), retain="none")
    record = first(task, request_, forget_weight=0.0)
    assert record["loss"] == record["loss/retain_nll"]
    assert settle(GradDiff, {"retain": "none"})[0].required() == ()
    assert settle(GradDiff, {})[0].required() == ("retain",)


def test_each_half_is_a_mean_over_its_own_rows() -> None:
    forget, retain = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 1.5])
    assert grad_diff_loss(forget, retain).item() == pytest.approx(1.0 - 3.0)
    assert grad_diff_loss(forget, retain, 0.5, 4.0).item() == pytest.approx(4.0 - 1.5)
