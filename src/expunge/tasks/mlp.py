"""The small network for tables and flat images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), dropout: float = 0.0) -> nn.Module:
    """Return a multi-layer perceptron with ReLU between its layers; inputs of more dimensions are flattened.

    Args:
        inputs: numbers per example.
        outputs: classes, or numbers to predict.
        hidden: widths of the hidden layers.
        dropout: after each hidden layer.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
