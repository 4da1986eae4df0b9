from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.general.ssd import dampen
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.importance import squared_gradients


def test_dampening_by_hand() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    forget = torch.tensor([20.0, 5.0, 30.0, 0.0, 1.0])
    everything = torch.tensor([1.0, 1.0, 2.0, 0.0, 0.0])
    # 20 > 10, 5 < 10, 30 > 20, 0 is not above 0, 1 > 0 with nothing to keep.
    expected = torch.tensor([1.0 / 20, 2.0, 3.0 * 2 / 30, 4.0, 0.0])
    torch.testing.assert_close(dampen(weight, forget, everything, 10.0, 1.0), expected)
    # A large lambda never makes a weight larger.
    assert torch.equal(dampen(weight[:1], forget[:1], everything[:1], 10.0, 100.0), weight[:1])


@given(seed=st.integers(0, 300), alpha=st.floats(0.1, 20), strength=st.floats(0.05, 5))
def test_weights_shrink_towards_zero_or_stay_bitwise(seed: int, alpha: float, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(30, generator=generator)
    forget, everything = torch.rand(2, 30, generator=generator) ** 3
    new = dampen(weight, forget, everything, alpha, strength)
    chosen = forget > alpha * everything
    assert torch.equal(new[~chosen], weight[~chosen])
    assert (new.abs() <= weight.abs()).all()
    assert ((new == 0) | (new.sign() == weight.sign())).all()


def test_what_is_dampened_follows_from_the_importances(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    request = DeletionRequest(tiny_rows("resnet", range(2)), tiny_rows("resnet", range(10, 40)))
    done = unlearn(task, request, "ssd", settings={"alpha": 4.0})
    parameters = dict(task.named_parameters())
    forget_set, retain_set = (task.encode(s) for s in (request.forget, request.retain))  # type: ignore[arg-type]
    forget = squared_gradients(task, forget_set, parameters)
    everything = squared_gradients(task, retain_set + forget_set, parameters)
    new, changed = dict(done.model.named_parameters()), 0
    for name, weight in parameters.items():
        expected = dampen(weight.detach(), forget[name], everything[name], 4.0, 1.0)
        torch.testing.assert_close(new[name], expected, atol=1e-6, rtol=1e-3)
        changed += int((expected != weight).sum())
    assert changed > 0
    assert abs(done.config["found"]["weights_dampened"] - changed) <= 2  # thresholds may fall either way by rounding


def test_an_alpha_that_nothing_can_exceed_is_refused(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(5)), tiny_rows("table", range(10, 20)))
    with pytest.raises(BadInput, match="no weight can be more than 3 times"):
        unlearn(tiny_predictor("table"), request, "ssd", settings={"alpha": 3.0})
    done = unlearn(tiny_predictor("table"), request, "ssd")
    assert done.config["found"]["alpha"] == 1.5
    alone = unlearn(tiny_predictor("table"), request, "ssd", settings={"alpha": 3.0, "importance_of": "retain"})
    assert alone.config["found"]["alpha"] == 3.0


def test_parity_depends_on_the_batch_size_and_ours_does_not(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(4)), tiny_rows("table", range(10, 50)))
    task = tiny_predictor("table")
    parameters = dict(task.named_parameters())
    examples = task.encode(request.retain) + task.encode(request.forget)  # type: ignore[arg-type]
    large_forget = squared_gradients(task, task.encode(request.forget), parameters, kind="batch", batch_size=8)
    small, large = (squared_gradients(task, examples, parameters, kind="batch", batch_size=size) for size in (1, 8))
    assert sum(float(v.sum()) for v in small.values()) > 2 * sum(float(v.sum()) for v in large.values())
    settings = {"parity": True, "parity_batch_size": 8, "alpha": 1.5}
    new = dict(unlearn(task, request, "ssd", settings=settings).model.named_parameters())
    for name, weight in parameters.items():
        expected = dampen(weight.detach(), large_forget[name], large[name], 1.5, 1.0)
        torch.testing.assert_close(new[name], expected, atol=1e-6, rtol=1e-3)
    assert any(not torch.equal(new[name], parameters[name]) for name in parameters)
