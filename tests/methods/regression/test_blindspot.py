from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expunge.methods.base import Run, settle
from expunge.methods.regression.blindspot import attention_distance, attention_map, towards
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

NAME = "table-regressor"


def test_distances_by_hand_and_shapes_that_would_broadcast_are_refused() -> None:
    stats: Any = SimpleNamespace(logits=torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
    target = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert towards(stats, target, True).tolist() == [1.5, 2.0]
    assert towards(stats, target, False).tolist() == [2.5, 5.0]
    with pytest.raises(ValueError, match="differ in shape"):
        towards(stats, torch.zeros(2, 1), True)


def test_it_comes_nearer_to_the_proxy_on_the_forget_set(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor(NAME)
    everything = DeletionRequest(tiny_rows(NAME, range(90, 92)), tiny_rows(NAME, range(30)))
    fitting = {"epochs": 80, "learning_rate": 1e-2, "warmup": 0.0}
    task = unlearn(task, everything, "finetune", settings=fitting).model
    others = tiny_rows(NAME, range(30)).select([i for i in range(30) if i % 3 != 1])
    request = DeletionRequest(tiny_rows(NAME, range(1, 28, 3)), others)
    settings = {"epochs": 40, "learning_rate": 5e-3, "proxy_epochs": 20, "warmup": 0.0}
    done = unlearn(task, request, "blindspot", settings=settings)
    assert done.config["proxy"]["steps"] == 20
    assert done.config["proxy"]["retain_error"] < 1.0

    def error(model: Any) -> float:
        return float(model.statistics(model.encode(request.forget)).nll.mean().detach())

    assert error(done.model) > error(task)


def test_the_proxy_is_paid_for(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows(NAME, range(4)), tiny_rows(NAME, range(4, 30)))
    costs = []
    for epochs in (1, 4):
        done = unlearn(tiny_predictor(NAME), request, "blindspot", settings={"epochs": 1, "proxy_epochs": epochs})
        assert done.training is not None
        costs.append(done.cost.backwards - done.training.cost.backwards)
    assert costs == [1, 4]  # one step an epoch


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 2, 5), (3, 6, 4)])
def test_attention_maps_are_those_of_a_loop(shape: tuple[int, ...], second: bool) -> None:
    torch.manual_seed(0)
    own, other = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    last = len(shape) == 3 and not second

    def by_hand(h: torch.Tensor) -> torch.Tensor:
        squares = torch.stack([one**2 for one in h.unbind(-1 if last else 1)]).mean(0)
        return torch.stack([row.flatten() / row.flatten().dot(row.flatten()).sqrt() for row in squares])

    torch.testing.assert_close(attention_map(own, second=second), by_hand(own))
    expected = ((by_hand(own) - by_hand(other)) ** 2).sum(1) / by_hand(own).shape[1]
    found = attention_distance({0: own, 4: own}, {0: other, 4: own}, second=second)
    torch.testing.assert_close(found, expected)


def test_layers_without_positions_have_constant_maps_and_are_left_out(tiny_predictor: Any, tiny_rows: Any) -> None:
    assert attention_map(torch.tensor([[3.0], [5.0]])[:, :, None]).tolist() == [[1.0], [1.0]]
    request = DeletionRequest(tiny_rows(NAME, range(4)), tiny_rows(NAME, range(4, 30)))
    done = unlearn(tiny_predictor(NAME), request, "blindspot", settings={"epochs": 1})
    assert done.config["attention_layers"] == 0


@pytest.mark.parametrize("batches", [{}, {"micro_batch_size": 2}])
def test_images_are_led_by_attention_maps_too(tiny_predictor: Any, tiny_rows: Any, batches: dict[str, int]) -> None:
    name = "image-regressor"
    request = DeletionRequest(tiny_rows(name, range(6)), tiny_rows(name, range(6, 18)))
    task = tiny_predictor(name)
    settings = {"epochs": 3, "batch_size": 6, "warmup": 0.0, **batches}
    done = unlearn(task.copy(), request, "blindspot", settings={**settings, "beta": 10.0})
    layers = done.config["attention_layers"]
    assert layers > 2
    assert done.training is not None

    # The first step's value, with the proxy that the same seed makes.
    method, train = settle(METHODS.get("blindspot"), {**settings, "beta": 10.0})
    objective = method.objective_for(task, request, Run(train=train))
    proxy, term = objective.teacher, next(t for t in objective.terms if t.name == "attention")
    assert proxy is not None
    assert len(term.blocks) == layers
    forget = task.encode(request.forget)
    task.model.train("micro_batch_size" not in batches)
    proxy.model.eval()
    with torch.no_grad():
        own = task.statistics(forget, blocks=term.blocks).blocks
        others = proxy.statistics(forget, blocks=term.blocks).blocks
    expected = 0.5 * 10.0 * float(attention_distance(own, others).mean())
    if not batches:  # batch statistics follow the micro-batch
        assert done.training.history[0]["loss/attention"] == pytest.approx(expected, rel=1e-4)
    assert done.training.history[0]["loss/attention"] > 0
    # The proxy looks at the images in every step, and not once, which is paid for.
    plain = unlearn(task.copy(), request, "blindspot", settings={**settings, "beta": 0.0})
    assert plain.config["attention_layers"] == 0
    assert "loss/attention" not in plain.training.history[0]  # type: ignore[union-attr]
    assert done.cost.forwards > plain.cost.forwards


def test_the_proxys_error_is_measured_a_batch_at_a_time(
    tiny_predictor: Any, tiny_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "table-regressor"
    request = DeletionRequest(tiny_rows(name, range(4)), tiny_rows(name, range(6, 46)))
    settings = {"max_steps": 1, "batch_size": 8}
    whole = unlearn(tiny_predictor(name), request, "blindspot", settings=settings).config["proxy"]
    monkeypatch.setattr(Predictor, "tokens_per_forward", 16)
    sizes: list[int] = []
    statistics = Predictor.statistics
    monkeypatch.setattr(
        Predictor, "statistics", lambda self, part, **how: sizes.append(len(part)) or statistics(self, part, **how)
    )
    parts = unlearn(tiny_predictor(name), request, "blindspot", settings=settings).config["proxy"]
    assert max(sizes) <= 16
    assert parts["retain_error"] == pytest.approx(whole["retain_error"], rel=1e-6)
