"""The lower problem: against loops written out, and that nothing else is moved by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from expunge.errors import Diverged
from expunge.forget_sets.lower import SEED_STRIDE, Lower
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.predictor import Predictor


def lower(task: Any, examples: Dataset, units: Tensor | None = None, **settings: Any) -> Lower:
    units = torch.arange(len(examples)) if units is None else units
    given = {"epochs": 2, "batch_size": 40, "rate": 1e-2, "ascent": 0.0, "seed": 1, **settings}
    return Lower(task, task.encode(examples), units, int(units.max()) + 1, **given)


def batches(count: int, iteration: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED_STRIDE + iteration)
    return [b.tolist() for _ in range(2) for b in torch.randperm(count, generator=generator).split(40)]


def plain_losses(model: torch.nn.Module, task: Predictor, examples: Dataset) -> Tensor:
    encoded = task.encode(examples)
    (pixels,) = task.batch(encoded).values()
    return torch.nn.functional.cross_entropy(model(pixels), encoded.targets, reduction="none")


def test_steps_along_the_sign_are_those_of_a_loop(examples: Dataset, learnt: Predictor) -> None:
    weights = torch.rand(len(examples), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient, losses = lower(learnt, examples).gradient(weights, 3, "sign")
    model = learnt.copy().model
    for rows in batches(len(examples), 3):
        loss = ((1 - weights[rows]) * plain_losses(model, learnt, examples)[rows]).sum()
        found = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), found, strict=True):
                p -= 1e-2 * g.sign()
    expected = plain_losses(model, learnt, examples).double()
    assert torch.allclose(losses, expected, atol=1e-5)
    assert torch.equal(gradient, losses), "nothing flows back through signs"


def test_plain_steps_give_the_gradient_of_the_whole(examples: Dataset, learnt: Predictor) -> None:
    some = examples.select(range(80))
    units = torch.arange(80) % 7
    weights = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = learnt.fresh(1)  # where gradients are large
    gradient, losses = lower(start, some, units, rate=0.5).gradient(weights, 0, "unrolled")
    names = [name for name, _ in start.named_parameters()]
    theta = [p.detach().clone().requires_grad_() for _, p in start.named_parameters()]
    w = weights.clone().requires_grad_()

    def losses_at(theta: list[Tensor]) -> Tensor:
        encoded = start.encode(some)
        (pixels,) = start.batch(encoded).values()
        out = torch.func.functional_call(start.model, dict(zip(names, theta, strict=True)), (pixels,))
        return torch.nn.functional.cross_entropy(out, encoded.targets, reduction="none")

    for rows in batches(80, 0):
        loss = ((1 - w[units[rows]]) * losses_at(theta)[rows]).mean()
        found = torch.autograd.grad(loss, theta, create_graph=True)
        theta = [p - 0.5 * g for p, g in zip(theta, found, strict=True)]
    means = torch.stack([losses_at(theta)[units == k].mean() for k in range(7)])
    (whole,) = torch.autograd.grad((w * means).sum(), w)
    assert torch.allclose(losses, means.double(), atol=1e-5)
    assert torch.allclose(gradient, whole, atol=1e-4)
    assert float((gradient - losses).abs().max()) > 1e-2, "something flows back"


@pytest.mark.parametrize("form", ["sign", "unrolled"])
def test_same_seed_same_numbers_and_the_model_is_left_alone(form: Any, examples: Dataset, learnt: Predictor) -> None:
    before = {k: v.clone() for k, v in learnt.model.state_dict().items()}
    weights = torch.full((len(examples),), 0.1, dtype=torch.float64)
    one, other = lower(learnt, examples), lower(learnt, examples)
    one.gradient(weights, 0, form)  # the start is the same again for the next one
    assert torch.equal(one.gradient(weights, 1, form)[0], other.gradient(weights, 1, form)[0])
    assert not torch.equal(one.gradient(weights, 2, form)[0], other.gradient(weights, 1, form)[0])
    assert all(torch.equal(v, before[k]) for k, v in learnt.model.state_dict().items())
    assert all(p.grad is None for p in learnt.model.parameters())


def test_ascent_makes_what_is_forgotten_worse(examples: Dataset, learnt: Predictor) -> None:
    weights = torch.zeros(len(examples), dtype=torch.float64)
    weights[:9] = 1
    left_out = lower(learnt, examples).gradient(weights, 0, "sign")[1]
    ascended = lower(learnt, examples, ascent=1.0).gradient(weights, 0, "sign")[1]
    assert float(ascended[:9].mean()) > float(left_out[:9].mean())


def test_a_search_that_breaks_down_says_so(examples: Dataset, learnt: Predictor) -> None:
    weights = torch.zeros(len(examples), dtype=torch.float64)
    with pytest.raises(Diverged, match="unlearn_rate"):
        lower(learnt, examples, rate=1e30).gradient(weights, 0, "sign")


@pytest.mark.parametrize("form", ["sign", "unrolled"])
@pytest.mark.parametrize("name", ["resnet", "bert", "table-regressor"])
def test_other_kinds_of_model(name: str, form: Any, tiny_predictor: Callable[..., Predictor], tiny_rows: Any) -> None:
    task, rows = tiny_predictor(name), tiny_rows(name, range(12))
    buffers = {k: v.clone() for k, v in task.model.named_buffers()}
    gradient, losses = lower(task, rows, batch_size=5).gradient(torch.full((12,), 0.5).double(), 0, form)
    assert torch.isfinite(gradient).all()
    assert (losses > 0).all()
    assert all(torch.equal(v, buffers[k]) for k, v in task.model.named_buffers())


@pytest.mark.parametrize("form", ["sign", "unrolled"])
def test_a_language_model(form: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model(vocab=384)[0], tiny_tokenizer)
    rows = Dataset.from_list([{"id": str(i), "prompt": f"Where is {i}?", "answer": "Clocks."} for i in range(4)])
    gradient, losses = lower(task, rows, batch_size=2).gradient(torch.full((4,), 0.25).double(), 0, form)
    assert torch.isfinite(gradient).all()
    assert (losses > 0).all()
