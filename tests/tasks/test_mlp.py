"""The small network."""

from __future__ import annotations

import torch
from torch import nn

from expunge.tasks.mlp import mlp


def test_sizes_and_dropout() -> None:
    model = mlp(12, 3, hidden=(5, 4), dropout=0.5)
    assert model(torch.zeros(2, 3, 4)).shape == (2, 3)
    assert [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)] == [5, 4, 3]
    assert sum(isinstance(layer, nn.Dropout) for layer in model.modules()) == 2
    assert not any(isinstance(layer, nn.Dropout) for layer in mlp(2, 2).modules())
