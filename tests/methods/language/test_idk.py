"""Refusal training: two token means, or the one of TOFU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.idk import IDK, idk_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.plan import Plan

ANSWERS = ("No.", "I do not know any of this, and I am sorry about it.")
LARGE = {"learning_rate": 1e-2, "warmup": 0.0, "schedule": "constant", "answers": ANSWERS}


def first(task: CausalLM, request: DeletionRequest, **settings: Any) -> dict[str, float]:
    done = unlearn(task, request, "idk", settings={**LARGE, "max_steps": 1, "batch_size": 4, **settings})
    assert done.training is not None
    return done.training.history[0]


def pairs(task: CausalLM, request: DeletionRequest) -> list[list[tuple[str, str]]]:
    """(refusal pairs, retain pairs) of the first step."""
    pool = settle(IDK, {"answers": ANSWERS})[0].examples("alternative", task, request)  # type: ignore[attr-defined]
    sets: dict[Any, Any] = {"forget": request.forget, "alternative": pool, "retain": request.retain}
    streams = {name: task.encode(examples) for name, examples in sets.items()}
    chosen = Plan(streams, "forget", batch_size=4, epochs=10, max_steps=1, seed=0).step(0).examples
    return [[(sets[s][i]["prompt"], sets[s][i]["answer"]) for i in chosen[s]] for s in ("alternative", "retain")]


def token_nll(task: CausalLM, asked: list[tuple[str, str]]) -> NDArray[np.float64]:
    return -np.concatenate([s.log_prob for s in task.score(asked)])


def test_values_by_hand() -> None:
    refusal, retain = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert idk_loss(refusal).item() == 3
    assert idk_loss(refusal, retain).item() == pytest.approx(10 / 6)


def test_both_halves_are_token_means_with_their_weights(task: CausalLM, request_: DeletionRequest) -> None:
    refusal, retain = (token_nll(task, one) for one in pairs(task, request_))
    record = first(task, request_, forget_weight=0.5, retain_weight=3.0)
    assert record["loss/idk"] == pytest.approx(0.5 * refusal.mean(), rel=1e-5)
    assert record["loss/retain_nll"] == pytest.approx(3 * retain.mean(), rel=1e-5)


def test_parity_is_one_mean_over_both(task: CausalLM, request_: DeletionRequest) -> None:
    refusal, retain = (token_nll(task, one) for one in pairs(task, request_))
    record = first(task, request_, parity=True)
    assert record["loss"] == pytest.approx(np.concatenate([refusal, retain]).mean(), rel=1e-5)
    assert record["loss"] != pytest.approx((refusal.mean() + retain.mean()) / 2, rel=1e-5)


def test_parity_averages_over_micro_batches_as_accumulation_does(task: CausalLM, request_: DeletionRequest) -> None:
    """One example at a time: the mean over pairs of the mean over a pair's tokens."""
    cut, whole = (first(task, request_, parity=True, micro_batch_size=m)["loss"] for m in (1, None))
    assert cut != pytest.approx(whole, rel=1e-6)
    means = [token_nll(task, [refusal, kept]).mean() for refusal, kept in zip(*pairs(task, request_), strict=True)]
    assert cut == pytest.approx(np.mean(means), rel=1e-5)


def test_parity_has_no_weights() -> None:
    assert settle(IDK, {"parity": True, "retain_weight": 1.0})[0].config.parity
    assert settle(IDK, {"parity": True, "retain": "kl", "retain_weight": 2.0})[0].config.parity
    for weight in ("retain_weight", "forget_weight"):
        with pytest.raises(BadInput, match=r"idk: parity.*has no weights"):
            settle(IDK, {"parity": True, weight: 2.0})


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(task: CausalLM, request_: DeletionRequest, size: int) -> None:
    whole, cut = (first(task, request_, micro_batch_size=m) for m in (None, size))
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert cut["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-3)


def test_it_learns_to_refuse_and_reads_no_true_answer(task: CausalLM, request_: DeletionRequest) -> None:
    settings = {**LARGE, "answers": ("No.",), "epochs": 6, "retain": "none"}
    done = unlearn(task, request_, "idk", settings=settings)
    pairs = [(r["prompt"], "No.") for r in request_.forget.to_list()]
    after, before = (sum(s.nll for s in m.score(pairs)) for m in (done.model, task))  # type: ignore[attr-defined]
    assert after < before
    assert done.training is not None
    assert done.training.cost.sequences == 6 * 6
    # Other answers to the same questions leave the outcome as it is.
    other = request_.forget.map(lambda row: {"answer": "Something else."})
    again = unlearn(task, DeletionRequest(other), "idk", settings=settings)
    assert again.training is not None
    assert again.training.history[-1]["loss"] == pytest.approx(done.training.history[-1]["loss"], rel=1e-6)
