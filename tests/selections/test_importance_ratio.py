from __future__ import annotations

from typing import Any

import torch

from expunge.requests.request import DeletionRequest
from expunge.selections.importance import squared_gradients
from expunge.selections.importance_ratio import ImportanceRatio, ImportanceRatioConfig


def test_weights_that_matter_more_to_the_forget_set_may_move(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(4)), tiny_rows("table", range(10, 20)))
    mask = ImportanceRatio(ImportanceRatioConfig(threshold=2.0)).build(task, request, 0)
    parameters = dict(task.named_parameters())
    forget, retain = (squared_gradients(task, task.encode(s), parameters) for s in (request.forget, request.retain))  # type: ignore[arg-type]
    for name, part in mask.items():
        assert part is not None
        assert torch.equal(part, forget[name] / retain[name].clamp_min(1e-30) > 2.0) or (retain[name] == 0).any()
    assert any(part.any() and not part.all() for part in mask.values() if part is not None)


def test_without_a_retain_set_there_is_nothing_to_compare_with(tiny_predictor: Any, tiny_rows: Any) -> None:
    import pytest

    from expunge.errors import BadInput

    with pytest.raises(BadInput, match="needs a retain set"):
        ImportanceRatio().check(tiny_predictor("table"), DeletionRequest(tiny_rows("table", range(4))))
