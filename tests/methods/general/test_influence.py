from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from expunge.methods.general.influence import (
    _product,
    conjugate_gradient,
    curvature,
    woodfisher_reference,
    woodfisher_weight,
)
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.importance import differentiable


@given(seed=st.integers(0, 200), size=st.integers(1, 12))
def test_conjugate_gradients_solve_linear_systems(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + 0.5 * torch.eye(size, dtype=torch.float64)
    target = torch.randn(size, generator=generator, dtype=torch.float64)
    found, residual, _ = conjugate_gradient(lambda u: matrix @ u, target, 200, 1e-10)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), atol=1e-6, rtol=1e-6)
    assert residual <= 1e-10
    _, rough, taken = conjugate_gradient(lambda u: matrix @ u, target, 1, 1e-10)
    assert taken == 1
    assert rough >= residual


def test_nothing_to_solve_takes_no_product() -> None:
    found, residual, taken = conjugate_gradient(lambda u: u, torch.zeros(3), 5, 1e-3)
    assert (found.tolist(), residual, taken) == ([0.0] * 3, 0.0, 0)


def test_the_reference_recursion_by_hand() -> None:
    v, g = torch.tensor([1.0, 2.0]), [torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.0, 3.0])]
    # o = (1, 0); with g_2: t = 2, k = (1, 2) - 4 / 12 (1, 0) = (2/3, 2), o = (1, 0) (1 - 2/12) = (5/6, 0)
    # with g_3: t = 0, k = (2/3, 2) - 6 / 10 (5/6, 0) = (1/6, 2)
    torch.testing.assert_close(woodfisher_reference(v, g, 10), torch.tensor([1 / 6, 2.0]))
    assert torch.equal(woodfisher_reference(v, g[:1], 10), v)
    long = [torch.ones(2)] * 20
    torch.testing.assert_close(woodfisher_reference(v, long, 3), woodfisher_reference(v, long[:5], 3))


@given(seed=st.integers(0, 200), count=st.integers(1, 9), constant=st.integers(1, 6))
def test_products_of_gradients_are_all_that_the_recursion_reads(seed: int, count: int, constant: int) -> None:
    luck = torch.Generator().manual_seed(seed)
    vector = torch.randn(5, generator=luck, dtype=torch.float64)
    rows = 0.5 * torch.randn(count, 5, generator=luck, dtype=torch.float64)
    c = woodfisher_weight((rows @ vector).tolist(), (rows @ rows[0]).tolist(), constant)
    torch.testing.assert_close(vector - c * rows[0], woodfisher_reference(vector, list(rows), constant))


@pytest.mark.parametrize("name", ["table", "table-regressor", "vit"])
def test_products_are_those_of_the_gauss_newton_matrix(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    """J^T H J u with J by finite differences of the outputs along u, against the quadratic form u^T G u."""
    task = tiny_predictor(name)
    task.model.double()
    rows = tiny_rows(name, range(5))
    encoded = task.encode(rows)
    parameters = dict(task.named_parameters())
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(sum(p.numel() for p in parameters.values()), generator=generator, dtype=torch.float64)

    def outputs(step: float) -> Tensor:
        with torch.no_grad():
            sizes = [p.numel() for p in parameters.values()]
            for p, u in zip(parameters.values(), direction.split(sizes), strict=True):
                p += step * u.view(p.shape)
            found = task.model(**{k: v.double() for k, v in task.batch(encoded).items()}) if name == "vit" else None
            logits = (
                found.logits if found is not None else task.model(*(v.double() for v in task.batch(encoded).values()))
            )
            for p, u in zip(parameters.values(), direction.split(sizes), strict=True):
                p -= step * u.view(p.shape)
        return logits

    change = (outputs(1e-5) - outputs(-1e-5)) / 2e-5
    if "regressor" in name:
        form = float((2 * change.square() / change.shape[1]).sum() / len(encoded))
    else:
        p = torch.softmax(outputs(0.0), -1)
        form = float(((p * change.square()).sum(-1) - (p * change).sum(-1).square()).sum() / len(encoded))
    task.model.float()
    with differentiable(task, parameters):
        image = _product(task, encoded, parameters, direction.float())
    assert float(image.double().dot(direction)) == pytest.approx(form, rel=1e-3)


def test_rows_without_a_label_have_no_curvature(make_task: Any, request_: Any) -> None:
    task = make_task()
    found = task.statistics(task.encode(request_.forget), positions="attended")
    image = curvature(found, torch.ones_like(found.logits) * torch.arange(found.logits.shape[1]))
    assert (image[~found.labelled] == 0).all()
    assert (image[found.labelled] != 0).any()


def test_on_a_quadratic_loss_the_step_leads_to_the_retrained_model(tiny_predictor: Any, tiny_rows: Any) -> None:
    """A linear model with squared error at its minimum over all data: one step is exact."""
    task = tiny_predictor("table-regressor")
    task.model = torch.nn.Linear(task.inputs.width, 2)
    everything = tiny_rows("table-regressor", range(30))
    forget, retain = everything.select(range(6)), everything.select(range(6, 30))

    def fit(rows: Any) -> None:
        encoded = task.encode(rows)
        (x,), y = task.batch(encoded).values(), encoded.targets
        design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        # The indicator columns add up to that of the bias, so only the shortest minimiser is defined.
        solution = (torch.linalg.pinv(design, rtol=1e-6) @ y.double()).float()
        with torch.no_grad():
            task.model.weight.copy_(solution[:-1].T)
            task.model.bias.copy_(solution[-1])

    fit(retain)
    expected = task.model.weight.detach().clone()
    fit(everything)
    before = (task.model.weight - expected).norm()
    settings = {"damping": 1e-7, "iterations": 300, "tolerance": 1e-7}
    new = unlearn(task, DeletionRequest(forget, retain), "influence", settings=settings)
    after = (new.model.model.weight - expected).norm()
    assert after < 0.02 * before
