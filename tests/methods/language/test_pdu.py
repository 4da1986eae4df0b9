"""PDU: the margin by hand, the reference's mask, and a dual variable that moves as it should and is resumed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.pdu import PDU, Dual, dual_step, pdu_loss, pdu_reference_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import collate

MakeTask = Callable[..., CausalLM]


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, -6.0, 3.0]], dtype=torch.float64)
    assert pdu_loss(logits).tolist() == [4.0, 0.0, 16.0]


@given(st.integers(0, 10**6), st.floats(-30, 30))
def test_the_gradient_by_its_closed_form_and_blind_to_shifts(seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    loss = pdu_loss(logits)
    torch.testing.assert_close(pdu_loss(logits + shift), loss, atol=1e-9, rtol=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    best = torch.nn.functional.one_hot(logits.argmax(-1), 6).double()
    margin = (logits.max(-1).values - logits.mean(-1)).detach()
    torch.testing.assert_close(gradient, 2 * margin[:, None] * (best - 1 / 6))


def test_parity_counts_the_row_behind_the_answer() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 5, 6, 2], [-100, 4, 2, -100, -100]])
    rows = [logits[0, 2], logits[0, 3], logits[0, 4], logits[1, 1], logits[1, 2]]
    expected = sum(float(r.max() - r.mean()) ** 2 for r in rows) / 5
    assert float(pdu_reference_loss(logits, labels)) == pytest.approx(expected)


def test_the_dual_variable_rises_with_a_violation_and_never_falls_below_0() -> None:
    assert dual_step(2.0, 0.5, 0.3, 5.0) == pytest.approx(3.0)
    assert dual_step(2.0, 0.1, 0.3, 5.0) == pytest.approx(1.0)
    assert dual_step(0.5, 0.0, 0.3, 5.0) == 0.0
    dual = Dual(1.0, bound=0.3, step_size=10.0, warmup_epochs=2)
    for epoch in (0, 1):
        dual.update(9.0, epoch)
    assert dual.value == 1.0
    dual.update(0.4, 2)
    assert dual.value == pytest.approx(2.0)


QUICK: dict[str, Any] = {"batch_size": 6, "learning_rate": 1e-3, "warmup": 0.0, "schedule": "constant"}


def history(
    task: CausalLM, request: DeletionRequest, folder: Path | None = None, **more: Any
) -> list[dict[str, float]]:
    done = unlearn(task, request, "pdu", settings={**QUICK, **more}, folder=folder)
    assert done.training is not None
    return done.training.history


@pytest.mark.parametrize("parity", [False, True])
def test_the_loop_s_first_step_is_the_pure_function(
    make_task: MakeTask, request_: DeletionRequest, parity: bool
) -> None:
    task = make_task()
    encoded = task.encode(request_.forget)
    batch = collate(encoded, 0, task.device)
    with torch.no_grad():
        logits = task.model(input_ids=batch.input_ids).logits
    labels = torch.full(batch.input_ids.shape, -100)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        labels[b, start : len(tokens)] = torch.from_numpy(tokens[start:])
    expected = pdu_reference_loss(logits, labels) if parity else pdu_loss(logits[:, :-1][labels[:, 1:] != -100]).mean()
    (first,) = history(task, request_, max_steps=1, parity=parity)
    assert first["loss/pdu"] == pytest.approx(float(expected), rel=1e-5)


def test_it_follows_the_violation_from_step_to_step(make_task: MakeTask, request_: DeletionRequest) -> None:
    settings = {"bound": 5.0, "dual_step_size": 3.0, "retain_weight": 2.0, "dual_warmup_epochs": 2, "epochs": 5}
    records = history(make_task(), request_, **settings)
    assert [r["weight/retain_nll"] for r in records[:3]] == [2.0, 2.0, 2.0]
    value = 2.0
    for record, following in pairwise(records[2:]):
        plain = record["loss/retain_nll"] / record["weight/retain_nll"]
        value = dual_step(value, plain, 5.0, 3.0)
        assert following["weight/retain_nll"] == pytest.approx(value, rel=1e-5)
    assert value > 3.0


def test_how_a_step_is_split_changes_the_dual_variable_in_parity_alone(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    settings = {"bound": 5.0, "dual_step_size": 1.0, "retain_weight": 2.0, "dual_warmup_epochs": 0, "max_steps": 3}
    for parity in (False, True):
        whole, split = (
            history(make_task(), request_, **settings, epochs=3, parity=parity, micro_batch_size=m) for m in (None, 2)
        )
        moved = [r[-1]["weight/retain_nll"] - 2.0 for r in (whole, split)]
        assert moved[0] > 0
        assert moved[1] == pytest.approx(moved[0] * (3 if parity else 1), rel=0.05 if parity else 1e-3)


def test_a_bound_that_is_not_reached_lets_go_of_the_retain_set(make_task: MakeTask, request_: DeletionRequest) -> None:
    settings = {"bound": 50.0, "dual_step_size": 1.0, "retain_weight": 2.0, "dual_warmup_epochs": 0, "max_steps": 3}
    records = history(make_task(), request_, epochs=3, **settings)
    assert [r["weight/retain_nll"] for r in records] == [2.0, 0.0, 0.0]
    assert records[1]["loss/retain_nll"] == 0.0


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("parity", [False, True])
def test_a_killed_run_goes_on_with_the_same_dual_variable(
    make_task: MakeTask, request_: DeletionRequest, tmp_path: Path, parity: bool
) -> None:
    settings = {
        **QUICK, "epochs": 6, "checkpoint_every": 2, "dual_warmup_epochs": 1, "parity": parity, "micro_batch_size": 2,
        "bound": 5.0, "retain_weight": 1.0,
    }  # fmt: skip

    def die(done: int, *_: Any) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        unlearn(make_task(), request_, "pdu", settings=settings, folder=tmp_path / "a", progress=die)
    again = unlearn(make_task(), request_, "pdu", settings=settings, folder=tmp_path / "a")
    whole = unlearn(make_task(), request_, "pdu", settings=settings, folder=tmp_path / "b")
    assert again.training is not None
    assert whole.training is not None
    assert again.training.resumed_from == 4
    assert again.training.history == whole.training.history, "bit for bit, the dual variable among them"
    assert len({r["weight/retain_nll"] for r in whole.training.history}) > 3
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in again.model.named_parameters())


def test_a_method_may_be_used_twice(make_task: MakeTask, request_: DeletionRequest) -> None:
    method, _ = settle(PDU, {"dual_warmup_epochs": 0})
    runs = [unlearn(make_task(), request_, method, settings={**QUICK, "max_steps": 3}) for _ in range(2)]
    assert runs[0].training is not None
    assert runs[1].training is not None
    assert runs[0].training.history == runs[1].training.history


def test_its_settings() -> None:
    method, train = settle(PDU, {})
    config = method.config
    assert (config.bound, config.retain_weight, config.dual_step_size) == (0.3, 100.0, 5.0)
    assert (config.dual_warmup_epochs, config.forget_weight) == (5, 1.0)
    assert train.epochs == 10
    assert method.required() == ("retain",)
    with pytest.raises(BadInput, match="retain"):
        settle(PDU, {"retain": "none"})
    assert settle(PDU, {"retain": "kl", "parity": True})[0].objective().positions("retain") == "all"  # type: ignore[attr-defined]


def test_predictions_become_flat_where_it_forgets_and_not_where_it_holds(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    everything = concatenate_datasets([request_.forget, request_.retain])  # type: ignore[list-item]
    taught = unlearn(
        make_task(), DeletionRequest(request_.holdout, everything), "finetune",  # type: ignore[arg-type]
        settings={"epochs": 40, "batch_size": 6, "learning_rate": 1e-2, "warmup": 0.0},
    ).model  # fmt: skip
    settings = {"epochs": 40, "batch_size": 6, "learning_rate": 3e-3, "warmup": 0.0, "dual_warmup_epochs": 1}
    new = unlearn(taught, request_, "pdu", settings=settings).model
    with torch.no_grad():
        flat = {}
        for name, task in (("before", taught), ("after", new)):
            for role in ("forget", "retain"):
                flat[name, role] = float(pdu_loss(task.statistics(task.encode(getattr(request_, role))).logits).mean())
    assert flat["after", "forget"] < 0.5 * flat["before", "forget"]
    assert flat["after", "retain"] > 1.5 * flat["after", "forget"]


def test_of_two_highest_logits_the_first_takes_the_gradient() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(pdu_loss(logits).sum(), logits)
    # 2 (3 - 2) times one-hot of the first, less the mean's quarter.
    assert gradient.tolist() == [[-0.5, 1.5, -0.5, -0.5]]
    low = torch.tensor([[300.0, 1.0, 2.0]], dtype=torch.bfloat16)
    assert pdu_loss(low).dtype == torch.float32
    assert pdu_loss(low).item() == pytest.approx(199.0**2, rel=1e-6)
