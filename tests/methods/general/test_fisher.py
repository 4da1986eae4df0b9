from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.general.fisher import noise_variance, port_information
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.importance import squared_gradients


def test_variances_by_hand() -> None:
    fisher = torch.tensor([[1.0, 4.0], [0.0, 2.0]])
    plain = noise_variance(fisher, 0.1, head=False)
    # Rows: mean of (1, 1/4) and of (1e3, 1/2), times alpha.
    torch.testing.assert_close(plain, 0.1 * torch.tensor([[0.625, 0.625], [500.25, 500.25]]))
    head = noise_variance(fisher, 0.1, head=True)
    torch.testing.assert_close(head, torch.tensor([[0.625, 0.625], [50.25, 50.25]]))
    torch.testing.assert_close(noise_variance(fisher[0], 0.1, head=False), torch.tensor([1.0, 0.25]))


def test_the_noise_has_the_variance_that_the_retain_set_allows(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(3)), tiny_rows("table", range(10, 30)))
    draws = [
        dict(unlearn(task, request, "fisher", settings={"alpha": 1e-4, "seed": s}).model.named_parameters())
        for s in range(60)
    ]
    parameters = dict(task.named_parameters())
    information = squared_gradients(task, task.encode(request.retain), parameters, kind="fisher")  # type: ignore[arg-type]
    heads = set(task.head_parameters())
    assert heads
    for name, weight in parameters.items():
        moved = torch.stack([d[name] - weight for d in draws])
        expected = noise_variance(information[name], 1e-4, head=name in heads)
        ratio = float(moved.detach().square().mean() / expected.mean())
        assert 0.7 < ratio < 1.4, name


def test_a_class_that_is_forgotten_loses_its_row_of_the_head(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    bees = tiny_rows("table", range(1, 13, 3))
    request = DeletionRequest(bees, tiny_rows("table", range(30, 42)), scenario="class")
    with torch.no_grad():
        for p in task.head_parameters().values():
            p += 5.0
    new = unlearn(task, request, "fisher", settings={"alpha": 1e-12}).model
    for name, p in new.head_parameters().items():
        assert p[1].abs().max() < 1.0, name
        assert p[0].abs().max() > 3.0, name
    with pytest.raises(BadInput, match="holds 3 classes"):
        unlearn(task, DeletionRequest(tiny_rows("table", range(6)), request.retain, scenario="class"), "fisher")


def test_parity_squares_the_means_of_batches_class_by_class(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    encoded = task.encode(tiny_rows("table", range(7)))
    parameters = dict(task.named_parameters())

    def predict(batch: Any) -> torch.Tensor:
        return task.predict(task.batch(encoded.take(batch)))  # type: ignore[no-any-return]

    batches = [[0, 1, 2, 3], [4, 5, 6]]
    found = port_information(predict, batches, parameters)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch in batches:
        shares = predict(batch).softmax(-1).mean(0)
        for label, share in enumerate(shares.tolist()):
            task.model.zero_grad()
            target = torch.full((len(batch),), label)
            torch.nn.functional.cross_entropy(predict(batch), target).backward()
            for name, p in parameters.items():
                assert p.grad is not None
                expected[name] += share * p.grad**2 / 2
    task.model.zero_grad()
    for name in parameters:
        torch.testing.assert_close(found[name], expected[name])
    # Batches of one example are the information itself.
    single = port_information(predict, [[i] for i in range(7)], parameters)
    information = squared_gradients(task, encoded, parameters, kind="fisher")
    for name in parameters:
        torch.testing.assert_close(single[name], information[name])
    request = DeletionRequest(tiny_rows("table", range(3)), tiny_rows("table", range(10, 30)))
    own = [
        dict(unlearn(task, request, "fisher", settings={"alpha": 1e-3, **more}).model.named_parameters())
        for more in ({}, {"parity": True, "parity_batch_size": 1}, {"parity": True, "parity_batch_size": 20})
    ]
    for name in parameters:
        torch.testing.assert_close(own[0][name], own[1][name], rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(own[0][name], own[2][name], rtol=1e-2) for name in parameters)


def test_parity_is_for_classifiers(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table-regressor", range(3)), tiny_rows("table-regressor", range(10, 20)))
    with pytest.raises(BadInput, match="parity"):
        unlearn(tiny_predictor("table-regressor"), request, "fisher", settings={"parity": True})
