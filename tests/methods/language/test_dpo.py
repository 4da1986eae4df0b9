"""DPO on refusals against its formula, and in the loop: pairs, reference, micro-batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.alternatives import REFUSALS
from expunge.methods.base import settle
from expunge.methods.language.dpo import DPO, dpo_loss
from expunge.methods.language.npo import npo_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.plan import Plan

LARGE = {"learning_rate": 1e-2, "warmup": 0.0, "schedule": "constant"}
number = st.floats(0, 300)


def double(*values: float) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in values)


def test_values_by_hand() -> None:
    # No ratio has moved: -(2/beta) log(1/2). Win up by log 3 / beta: sigmoid = 3/4. Win down by as much: 1/4.
    step = math.log(3) / 0.1
    win, lose = torch.tensor([50.0, 50 - step, 50 + step, 50.0]), torch.tensor([7.0, 7.0, 7.0, 7 + step])
    found = dpo_loss(win, torch.full((4,), 50.0), lose, torch.full((4,), 7.0), 0.1)
    by_hand = [20 * math.log(2), 20 * math.log(4 / 3), 20 * math.log(4), 20 * math.log(4 / 3)]
    assert found.tolist() == pytest.approx(by_hand, rel=1e-5)


@given(w=number, wr=number, x=number, xr=number, beta=st.floats(0.01, 5))
def test_the_gradient_pulls_the_refusal_up_as_hard_as_it_pushes_the_answer_down(
    w: float, wr: float, x: float, xr: float, beta: float
) -> None:
    """d loss / d win_nll = 2 pi_l^b / (pi_w^b + pi_l^b) with pi the ratios to the reference; minus that for lose."""
    win, win_reference, lose, lose_reference = double(w, wr, x, xr)
    dpo_loss(win, win_reference, lose, lose_reference, beta).sum().backward()
    assert win.grad is not None
    assert lose.grad is not None
    weight = 2 / (1 + math.exp(min(700.0, beta * ((wr - w) - (xr - x)))))
    assert win.grad.item() == pytest.approx(weight, rel=1e-9, abs=1e-12)
    assert lose.grad.item() == pytest.approx(-weight, rel=1e-9, abs=1e-12)


@given(x=number, xr=number, beta=st.floats(0.01, 5))
def test_with_a_refusal_that_does_not_move_it_is_npo(x: float, xr: float, beta: float) -> None:
    win, lose, reference = double(3.0, x, xr)
    assert torch.equal(dpo_loss(win, win, lose, reference, beta), npo_loss(lose, reference, beta))


def test_long_texts_do_not_overflow() -> None:
    high, low = torch.tensor([1e6, 0.0]), torch.tensor([0.0, 1e6])
    assert dpo_loss(high, low, low, high, 0.1).tolist() == pytest.approx([4e6, 0.0])


def history(task: CausalLM, request: DeletionRequest, **settings: Any) -> list[dict[str, float]]:
    done = unlearn(task, request, "dpo", settings={**LARGE, **settings})
    assert done.training is not None
    return done.training.history


def test_it_sums_over_tokens_of_the_pairs_that_meet(task: CausalLM, request_: DeletionRequest) -> None:
    settings = {"epochs": 2, "batch_size": 6}
    first, second = history(task, request_, **settings)
    assert first["loss/dpo"] == pytest.approx(20 * math.log(2), rel=1e-4)
    method = settle(DPO, {})[0]
    assert isinstance(method, DPO)
    pool = method.examples("alternative", task, request_)
    streams: Any = {"forget": task.encode(request_.forget), "alternative": task.encode(pool)}
    chosen = Plan(streams, "forget", batch_size=6, epochs=2, max_steps=None, seed=0).step(1).examples
    moved = unlearn(task, request_, "dpo", settings={**LARGE, **settings, "max_steps": 1}).model
    losses = []
    for lose, win in zip(chosen["forget"], chosen["alternative"], strict=True):
        pairs = [(r["prompt"], r["answer"]) for r in (pool[win], request_.forget[lose])]
        assert pairs[0][0] == pairs[1][0]
        assert pairs[0][1] in REFUSALS
        now, then = moved.score(pairs), task.score(pairs)  # type: ignore[attr-defined]
        up, down = (a.log_prob.sum() - b.log_prob.sum() for a, b in zip(now, then, strict=True))
        losses.append(20 * math.log1p(math.exp(-0.1 * (up - down))))
    assert second["loss/dpo"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert second["loss/dpo"] < first["loss/dpo"]


def test_refusals_are_drawn_anew_in_every_epoch(task: CausalLM, request_: DeletionRequest) -> None:
    method = settle(DPO, {})[0]
    pool = method.examples("alternative", task, request_)  # type: ignore[attr-defined]
    streams: Any = {"forget": task.encode(request_.forget), "alternative": task.encode(pool)}
    plan = Plan(streams, "forget", batch_size=6, epochs=4, max_steps=None, seed=0)
    met = [{pool[i]["id"] for i in plan.step(k).examples["alternative"]} for k in range(4)]
    assert len(set.union(*met)) > 18


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_change_nothing(task: CausalLM, request_: DeletionRequest, size: int) -> None:
    whole = history(task, request_, epochs=2, batch_size=5)
    cut = history(task, request_, epochs=2, batch_size=5, micro_batch_size=size)
    for one, other in zip(whole, cut, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_the_reference_reads_every_pair_once(task: CausalLM, request_: DeletionRequest) -> None:
    """Three epochs of six pairs, and six answers and their one refusal under the reference."""
    settings = {**LARGE, "epochs": 3, "answers": ("No.",), "retain": "none"}
    done = unlearn(task, DeletionRequest(request_.forget), "dpo", settings=settings)
    assert done.training is not None
    assert done.training.cost.sequences == 3 * 12 + 12


def test_the_preference_grows(task: CausalLM, request_: DeletionRequest) -> None:
    settings = {"epochs": 8, "answers": ("I don't know.",), "retain": "none"}
    new = unlearn(task, request_, "dpo", settings={**LARGE, **settings}).model
    asked = [(r["prompt"], r["answer"]) for r in request_.forget.to_list()]
    refused = [(prompt, "I don't know.") for prompt, _ in asked]

    def likelihood(model: Any, pairs: list[tuple[str, str]]) -> float:
        return float(sum(s.log_prob.sum() for s in model.score(pairs)))

    assert likelihood(new, refused) > likelihood(task, refused)
    assert likelihood(new, asked) < likelihood(task, asked)


def test_defaults_are_those_of_open_unlearning() -> None:
    config = settle(DPO, {})[0].config
    assert (config.beta, config.forget_weight, config.retain_weight, config.retain) == (0.1, 1.0, 1.0, "nll")
    assert config.answers == ()
    assert config.answers_file is config.answers_column is config.answers_per_example is None
