"""Everything outside a selection stays bitwise as it was, whatever decay, momentum, clipping or NaN do inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.masking import MaskedWeights
from expunge.training.objective import Objective, Term, kl_to_reference, negative_nll
from expunge.training.settings import TrainSettings

Weights = Callable[[CausalLM], dict[str, torch.Tensor]]
OBJECTIVE = Objective(
    (
        Term("ascent", ("forget",), negative_nll, "token_mean"),
        Term("kl", ("retain",), kl_to_reference, "row_mean", reference="rows"),
    )
)
SETTINGS = TrainSettings(max_steps=4, batch_size=3, learning_rate=1e-2, weight_decay=0.3, warmup=0.0)


def some(task: CausalLM, seed: int = 0) -> dict[str, torch.Tensor]:
    """A mask of half of the entries of half of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, _ in task.named_parameters()]
    shapes = {name: p.shape for name, p in task.named_parameters()}
    return {name: torch.rand(shapes[name], generator=generator) < 0.5 for name in names[::2]}


def streams(encode: Any) -> dict[Any, Any]:
    return {"forget": encode(9), "retain": encode(12, 100)}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nothing_outside_moves_and_everything_inside_may(
    task: CausalLM, encode: Any, weights: Weights, optimizer: str
) -> None:
    before, mask = weights(task), some(task)
    train(task, OBJECTIVE, streams(encode), SETTINGS.model_copy(update={"optimizer": optimizer}), mask=mask)
    after = weights(task)
    for name, value in before.items():
        moved = after[name] != value
        if name in mask:
            assert not moved[~mask[name]].any(), name
            assert moved[mask[name]].any(), name
        else:
            assert torch.equal(after[name], value), name
    assert all(p.requires_grad for p in task.model.parameters())


def test_what_no_gradient_reaches_does_not_decay(task: CausalLM, encode: Any, weights: Weights) -> None:
    before = weights(task)
    low = Term("low", ("forget",), lambda s: s.per_example(s.blocks[0].square().sum(-1)), "example_mean", blocks=(0,))
    train(task, Objective((low,)), streams(encode), SETTINGS, mask=some(task))
    moved = {name for name, value in weights(task).items() if not torch.equal(value, before[name])}
    assert moved
    assert not any("layers.1" in name or name.startswith(("lm_head", "model.norm")) for name in moved)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_mask_of_everything_is_no_mask(task: CausalLM, encode: Any, weights: Weights, optimizer: str) -> None:
    other, settings = task.copy(), SETTINGS.model_copy(update={"optimizer": optimizer})
    train(task, OBJECTIVE, streams(encode), settings)
    train(other, OBJECTIVE, streams(encode), settings, mask=dict.fromkeys(dict(other.named_parameters())))
    expected = weights(task)
    assert all(torch.equal(value, expected[name]) for name, value in weights(other).items())


def test_chosen_entries_move_as_in_plain_adamw(task: CausalLM, encode: Any, weights: Weights) -> None:
    """Without clipping, the chosen entries take the step that AdamW takes with all others held still."""
    mask, start = some(task), weights(task)
    settings = SETTINGS.model_copy(update={"max_steps": 1, "clip_norm": None})
    free = task.copy()
    train(task, OBJECTIVE, streams(encode), settings, mask=mask)
    train(free, OBJECTIVE, streams(encode), settings)
    unmasked = weights(free)
    for name, value in weights(task).items():
        expected = torch.where(mask[name], unmasked[name], start[name]) if name in mask else start[name]
        assert torch.equal(value, expected), name


def test_a_resumed_run_ends_with_the_same_bytes(task: CausalLM, encode: Any, weights: Weights, tmp_path: Path) -> None:
    mask, other = some(task), task.copy()
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    train(task, OBJECTIVE, streams(encode), settings, mask=mask)

    def stop(done: int, _: int, __: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    start = other.copy()
    with pytest.raises(KeyboardInterrupt):
        train(other, OBJECTIVE, streams(encode), settings, mask=mask, folder=tmp_path, progress=stop)
    result = train(start, OBJECTIVE, streams(encode), settings, mask=mask, folder=tmp_path)
    assert result.resumed_from == 2
    expected = weights(task)
    assert all(torch.equal(value, expected[name]) for name, value in weights(start).items())


@given(seed=st.integers(0, 500), decay=st.floats(0, 0.5), steps=st.integers(1, 5))
def test_neither_decay_nor_momentum_nor_nan_reach_what_is_masked(seed: int, decay: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(5, 4)
    mask = {"weight": torch.rand(4, 5, generator=generator) < 0.5}
    mask["weight"][0, 0] = True
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    masked = MaskedWeights(layer, mask)
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(masked.groups(trained, decay), lr=0.1)
    for _ in range(steps):
        layer.weight.grad = torch.randn(4, 5, generator=generator)
        layer.weight.grad[~mask["weight"]] = float("nan")
        masked.mask_gradients()
        masked.decay(0.1 * decay)
        optimizer.step()
    assert torch.equal(layer.bias, before["bias"])
    assert torch.equal(layer.weight[~mask["weight"]], before["weight"][~mask["weight"]])
    assert (layer.weight[mask["weight"]] != before["weight"][mask["weight"]]).all()
    assert layer.weight.isfinite().all()
    masked.release(layer)
    assert layer.bias.requires_grad


def test_a_name_that_is_not_there_is_refused(task: CausalLM) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        MaskedWeights(task.model, {"nowhere": None})


def test_adapters_are_refused(task: CausalLM, encode: Any) -> None:
    settings = TrainSettings(**{**SETTINGS.model_dump(), "lora": {"rank": 2}})
    with pytest.raises(BadInput, match="adapters are trained"):
        train(task, OBJECTIVE, streams(encode), settings, mask=some(task))


def test_what_is_held_comes_back_whatever_happens_to_the_weights() -> None:
    model = torch.nn.Linear(4, 3)
    part = torch.zeros(3, 4, dtype=torch.bool)
    part[0] = True
    before = model.weight.detach().clone()
    masked = MaskedWeights(model, {"weight": part, "bias": None})
    with masked.held(), torch.no_grad():
        model.weight.mul_(2.0)
        model.bias.fill_(7.0)
    assert torch.equal(model.weight[0], before[0] * 2)
    assert torch.equal(model.weight[1:], before[1:])
    assert bool((model.bias == 7).all())
