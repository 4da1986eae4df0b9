"""How the gradient of each kind of layer follows for every example, from its input and its output's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Rule(NamedTuple):
    """How the gradients of a layer's parameters follow.

    Attributes:
        prepare: what is needed of the layer's input, the same for all losses; its first dimension is B.
        gradients: (B, *shape) by the parameters' own names, from that and the (B, ...) gradient of the output.
    """

    prepare: Callable[[Any, Tensor], Tensor]
    gradients: Callable[[Any, Tensor, Tensor], dict[str, Tensor]]


def _places(_: Any, rows: Tensor) -> Tensor:
    """(B, H) or (B, ..., H) as (B, T, H)."""
    return rows[:, None] if rows.dim() == 2 else rows.flatten(1, -2)


def _linear(module: nn.Linear, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    gradient = _places(module, gradient)
    return {"weight": torch.einsum("bto,bti->boi", gradient, given), "bias": gradient.sum(1)}


def _conv1d(module: Conv1D, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    gradient = _places(module, gradient)  # a linear layer whose weight is transposed
    return {"weight": torch.einsum("bti,bto->bio", given, gradient), "bias": gradient.sum(1)}


def _patches(module: nn.Conv2d, given: Tensor) -> Tensor:
    """(B, G, L, C / G times the kernel) what each of the L places sees."""
    size, stride, padding = module.kernel_size, module.stride, module.padding
    assert isinstance(padding, tuple)
    if module.dilation == (1, 1):  # a copy of a strided view takes half the time of F.unfold
        padded = F.pad(given, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else given
        windows = padded.unfold(2, size[0], stride[0]).unfold(3, size[1], stride[1])
        found = windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)
    else:
        found = F.unfold(given, size, module.dilation, padding, stride)
    return found.unflatten(1, (module.groups, -1)).transpose(2, 3)


def _conv2d(module: nn.Conv2d, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    weight = gradient.flatten(2).unflatten(1, (module.groups, -1)) @ given
    return {"weight": weight.reshape(len(given), *module.weight.shape), "bias": gradient.sum((2, 3))}


def _layer_norm(module: nn.LayerNorm, given: Tensor) -> Tensor:
    return F.layer_norm(given, module.normalized_shape, eps=module.eps)


def _group_norm(module: nn.GroupNorm, given: Tensor) -> Tensor:
    return F.group_norm(given, module.num_groups, eps=module.eps)


def _batch_norm(module: Any, given: Tensor) -> Tensor:
    return F.batch_norm(given, module.running_mean.to(given), module.running_var.to(given), eps=module.eps)


def _scaled(module: nn.LayerNorm, normal: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    last = len(module.normalized_shape)
    rows = (rows.reshape(len(rows), -1, *rows.shape[-last:]).sum(1) for rows in (gradient * normal, gradient))
    return dict(zip(("weight", "bias"), rows, strict=True))


def _channels(_: Any, normal: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    rows = (rows.reshape(*rows.shape[:2], -1).sum(2) for rows in (gradient * normal, gradient))
    return dict(zip(("weight", "bias"), rows, strict=True))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_places, _linear),
    Conv1D: Rule(_places, _conv1d),
    nn.Conv2d: Rule(_patches, _conv2d),
    nn.LayerNorm: Rule(_layer_norm, _scaled),
    nn.GroupNorm: Rule(_group_norm, _channels),
    nn.BatchNorm1d: Rule(_batch_norm, _channels),
    nn.BatchNorm2d: Rule(_batch_norm, _channels),
}
# An embedding has no such rule: the gradients of all its rows, of every example, would not fit.
RULED: frozenset[type[nn.Module]] = frozenset({*RULES, nn.Embedding})
