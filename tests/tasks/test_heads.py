"""Finding the head of a classifier and the rows that it was given."""

from __future__ import annotations

import torch
from torch import nn

from expunge.tasks.heads import calls_of, head_name, mixing_layers, read_rows, without_batch_statistics


def test_the_head_is_the_last_linear_layer_of_the_right_width() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert head_name(model, 3) == "1"
    assert head_name(model, 2) == "3"
    assert head_name(model, 7) is None


def test_a_decoder_keeps_one_token_and_its_row_is_found() -> None:
    head, hidden = nn.Linear(4, 3), torch.randn(2, 5, 4)
    output = head(hidden)
    logits = output[torch.arange(2), torch.tensor([4, 1])]
    found = read_rows([(hidden, output)], logits)
    assert found is not None
    assert torch.equal(found, hidden[torch.arange(2), torch.tensor([4, 1])])
    assert read_rows([(hidden, output)] * 2, logits) is None


def test_calls_are_collected_and_the_hook_is_gone() -> None:
    layer = nn.Linear(2, 2)
    with calls_of(layer) as seen:
        layer(torch.zeros(1, 2))
    layer(torch.zeros(1, 2))
    assert len(seen) == 1
    assert not layer._forward_hooks
    with calls_of(None) as nothing:
        assert nothing == []


def test_only_layers_that_train_are_switched_and_switched_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    assert mixing_layers(model) == ["0", "1"]
    model[1].eval()
    with without_batch_statistics(model, ["0", "1"]):
        assert not model[0].training
    assert model[0].training
    assert not model[1].training
