"""The last linear layer of a classifier, what goes into it, and layers that mix the examples of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Call = tuple[Tensor, Tensor]


def head_name(model: nn.Module, width: int) -> str | None:
    """Return the name of the last linear layer that has one output per class or number."""
    found = None
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == width:
            found = name
    return found


def read_rows(seen: Sequence[Call], logits: Tensor) -> Tensor | None:
    """Return the (B, H) head inputs that the predictions were made from, or None where that cannot be told."""
    if len(seen) != 1:
        return None
    hidden, output = seen[0]
    if hidden.dim() == 2:
        return hidden
    if hidden.dim() == 3:  # a decoder scores every token and keeps one of them
        kept = (output.float() == logits[:, None]).all(-1).int().argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), kept]
    return None


@contextmanager
def calls_of(module: nn.Module | None) -> Iterator[list[Call]]:
    """Collect input and output of each call of a module; nothing where there is none."""
    seen: list[Call] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


def mixing_layers(model: nn.Module) -> list[str]:
    """Name the layers through which, in training, the examples of a batch reach each other: batch normalisation."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


@contextmanager
def without_batch_statistics(model: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Let batch normalisation use what it has learned, as it must for a batch of one, which has no variance."""
    modules = [module for name in layers if (module := model.get_submodule(name)).training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()
