"""Parts of a classifier or regressor: its last linear layer, its nonlinearities, layers that mix a batch's examples."""

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


# Where the classes of nonlinearities are; of torch's, some give out shares or attention and are none.
_NONLINEAR = ("torch.nn.modules.activation", "transformers.activations")
_NOT_NONLINEAR = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)


@contextmanager
def nonlinearities_of(model: nn.Module, wanted: Sequence[int] | None) -> Iterator[list[Tensor]]:
    """Collect what the nonlinearities of a model that are modules give out, in the order of their calls.

    Args:
        model: any module.
        wanted: which calls of a forward pass, from 0; None for all of them, empty for none.

    Yields:
        A list that receives (B, ...) per call that is wanted.
    """
    seen: list[Tensor] = []
    calls = 0

    def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal calls
        if wanted is None or calls in wanted:
            seen.append(output.clone())  # what comes behind may change it in place
        calls += 1

    handles = []
    if wanted is None or wanted:
        handles = [
            module.register_forward_hook(note)
            for module in model.modules()
            if type(module).__module__ in _NONLINEAR and not isinstance(module, _NOT_NONLINEAR)
        ]
    try:
        yield seen
    finally:
        for handle in handles:
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
