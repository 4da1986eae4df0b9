from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.methods.classification.boundary_expand import narrowed, widened
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.loading import load_task


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_widening_and_narrowing_leave_the_other_outputs_as_they_were(bias: bool, dtype: torch.dtype) -> None:
    head = nn.Linear(5, 3, bias=bias, dtype=dtype)
    x = torch.randn(4, 5, dtype=dtype)
    wide = widened(head, 0)
    assert torch.equal(wide.weight[:-1], head.weight)
    assert torch.equal(narrowed(wide).weight, head.weight)
    torch.testing.assert_close(wide(x)[:, :3], head(x))
    torch.testing.assert_close(narrowed(wide)(x), head(x))
    assert torch.equal(widened(head, 0).weight, wide.weight)
    assert not torch.equal(widened(head, 1).weight[-1], wide.weight[-1])


@pytest.mark.parametrize("name", ["resnet", "vit", "table", "bert"])
def test_the_new_class_is_gone_from_the_model_that_comes_out(
    tiny_predictor: Any, tiny_rows: Any, tmp_path: Path, name: str
) -> None:
    task = tiny_predictor(name)
    request = DeletionRequest(tiny_rows(name, range(6)))
    before = task.statistics(task.encode(request.forget)).nll.mean()
    done = unlearn(task, request, "boundary_expand", settings={"epochs": 20, "learning_rate": 3e-3, "warmup": 0.0})
    logits = done.model.statistics(done.model.encode(request.forget)).logits
    assert logits.shape == (6, 3)
    assert task.statistics(task.encode(request.forget)).nll.mean() == before
    assert done.training is not None
    assert done.training.history[-1]["loss"] < done.training.history[0]["loss"]
    done.save(tmp_path / "out")
    options = {"factory": "expunge.tasks.mlp:mlp"} if name == "table" else {}
    again = load_task(tmp_path / "out", **options)
    torch.testing.assert_close(again.statistics(again.encode(request.forget)).logits, logits)
