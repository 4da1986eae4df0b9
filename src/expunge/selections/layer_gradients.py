"""Gradients of every example of a batch from one forward and one backward pass, layer by layer.

A layer's gradient for one example follows from what went into the layer and from the gradient of what came out of it:
an outer product for a linear layer, a sum of them over places for a convolution. One backward pass of the summed losses
gives the latter for all examples, as long as no example influences another. ``torch.func`` can do the same for any
model and is what other layers are left to; on a CPU it costs several times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from expunge.selections.layer_rules import RULED, RULES


class NotApart(RuntimeError):
    """What a layer did shows that its examples cannot be told apart this way; the caller has to do it another way."""


@dataclass
class Seen:
    """One call of a layer.

    Attributes:
        module: the layer.
        given: its input, detached.
        version: of the input's memory, which a later change in place raises.
        edge: where the gradient of its output is read, before anything changes the output in place.
        shape, dtype: of its output.
    """

    module: nn.Module
    given: Tensor
    version: int
    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype


# Squares of this many numbers at a time stay in a processor's cache.
CACHED = 1 << 20


@dataclass
class Layers:
    """The layers of a model that have a rule and hold one row per example, and what else there is.

    Attributes:
        owned: layer -> {a parameter's own name: its name in the model}.
        same: layers whose output is the same for all examples, such as an embedding of positions.
        rest: names of the parameters that no rule covers.
        numbers: that are held per example while gradients are taken, about.
    """

    owned: dict[str, dict[str, str]]
    same: list[str]
    rest: list[str]
    numbers: int


def layers_with_rules(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Return the layers that there is a rule for, as ``Layers.owned``; parameters that two layers share are left out.

    Args:
        model: in evaluation mode. One that mixes the examples of a batch even there has no such layers.
        parameters: those asked for, by name.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return {}
        for own in module.parameters(recurse=False):
            owners[id(own)] = owners.get(id(own), 0) + 1
    names = {id(p): name for name, p in parameters.items()}
    found = {}
    for name, module in model.named_modules():
        if type(module) not in RULED or not _plain(module):
            continue
        asked = {k: names[id(p)] for k, p in module.named_parameters(recurse=False) if id(p) in names}
        if asked and all(owners[id(p)] == 1 for p in module.parameters(recurse=False)):
            found[name] = asked
    return found


def _plain(module: nn.Module) -> bool:
    """Whether a layer does what its rule takes for granted."""
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and isinstance(module.padding, tuple)
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return True


@contextmanager
def recording(
    model: nn.Module, names: Iterator[str] | Sequence[str], same: Sequence[str] = (), batch: int = 1
) -> Iterator[dict[str, list[Seen | None]]]:
    """Record the calls of layers while entered; None for one that was not called with a tensor alone.

    Args:
        model: the model.
        names: of the layers.
        same: those of them that give one row for all examples, and are made to give one for each.
        batch: examples of the forward pass.
    """
    seen: dict[str, list[Seen | None]] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        calls = seen.setdefault(name, [])
        if len(args) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
            calls.append(None)
            return None
        given, changed = args[0], None
        if name in same:
            changed = output = output.expand(batch, *output.shape[1:])
            given = given.expand(batch, *given.shape[1:])
        calls.append(
            Seen(module, given.detach(), given._version, get_gradient_edge(output), output.shape, output.dtype)
        )
        return changed

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def layers_of(
    model: nn.Module, parameters: Mapping[str, Tensor], forward: Callable[[int], Tensor], most: int
) -> Layers:
    """Find the layers whose gradients can be told apart by their rows.

    The model is called with one example and with several. A layer counts if it is called once, and if the first
    dimension of its output alone follows the number of examples: one that is called on a transposed or a folded batch
    is not read by rows.

    Args:
        model: in evaluation mode.
        parameters: those asked for, by name, with gradients switched on.
        forward: calls the model with so many examples of one size.
        most: how many examples it can be called with, 2 or more.
    """
    candidates = layers_with_rules(model, parameters)
    calls = []
    for size in (1, most):
        with torch.enable_grad(), recording(model, list(candidates)) as seen:
            forward(size)
        calls.append(seen)
    owned: dict[str, dict[str, str]] = {}
    same, activations, largest = [], 0, 0
    for name, asked in candidates.items():
        one, many = ([s.shape for s in seen.get(name, []) if s is not None] for seen in calls)
        if len(one) != 1 or len(many) != 1 or any(len(seen[name]) != 1 for seen in calls):
            continue
        if one[0] == many[0] and one[0][0] == 1:
            same.append(name)
        elif one[0][0] != 1 or many[0] != torch.Size([most, *one[0][1:]]):
            continue
        owned[name] = asked
        activations += one[0].numel()
        weights = sum(parameters[full].numel() for full in asked.values())
        patches = 0
        if isinstance(conv := model.get_submodule(name), nn.Conv2d):
            patches = one[0].numel() // conv.out_channels * conv.in_channels * conv.weight[0, 0].numel()
        largest = max(largest, 2 * weights + patches)
    covered = {full for asked in owned.values() for full in asked.values()}
    return Layers(owned, same, [n for n in parameters if n not in covered], max(1, 4 * activations + largest))


def squares_of(seen: Seen, gradients: Sequence[Tensor], shares: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the sums over losses and examples of ``share`` times a layer's squared gradients, by their own names.

    They are in float32 or better, whatever the precision of the layer.

    Args:
        seen: the layer's call.
        gradients: of its output, (B, ...), one per loss.
        shares: (B,), one per loss.
    """
    given, module = _unchanged(seen), seen.module
    precise = torch.promote_types(seen.dtype, torch.float32)
    gradients, shares = [g.to(precise) for g in gradients], [share.to(precise) for share in shares]
    given = given.to(precise) if given.is_floating_point() else given
    if isinstance(module, nn.Linear) and given.dim() == 2:
        # The square of an outer product is the outer product of squares: no example's gradient is ever formed.
        squares = sum(g.square() * share[:, None] for g, share in zip(gradients, shares, strict=True))
        assert isinstance(squares, Tensor)
        return {"weight": squares.T @ given.square(), "bias": squares.sum(0)}
    if isinstance(module, nn.Embedding):
        each = zip(gradients, shares, strict=True)
        return {"weight": torch.stack([_embedding_squares(module, given, g, share) for g, share in each]).sum(0)}
    rule = RULES[type(module)]
    step = max(1, CACHED // sum(p.numel() for p in module.parameters(recurse=False)))
    total: dict[str, Tensor] = {}
    for start in range(0, len(given), step):
        some = slice(start, start + step)
        prepared = rule.prepare(module, given[some])
        for gradient, share in zip(gradients, shares, strict=True):
            for name, rows in rule.gradients(module, prepared, gradient[some]).items():
                summed = (share[some] @ rows.flatten(1).square_()).reshape(rows.shape[1:])
                total[name] = total[name] + summed if name in total else summed
    return total


def projections_of(seen: Seen, gradient: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
    """Return the (B,) products of every example's gradient with a direction, summed over a layer's parameters.

    The output of every layer that has a rule is linear in its parameters, so its change along the direction is what the
    layer gives with the direction in their place.

    Args:
        seen: the layer's call.
        gradient: of its output, (B, ...).
        direction: own name -> tensor of the parameter's shape, for those that are asked for.
    """
    module, given = seen.module, _unchanged(seen)
    named = dict(module.named_parameters(recurse=False))
    along = {name: direction.get(name, torch.zeros_like(p)).to(p) for name, p in named.items()}
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        along["weight"] = along["weight"].index_fill(0, torch.tensor(module.padding_idx, device=given.device), 0)
    with torch.no_grad():
        change = torch.func.functional_call(module, along, (given,))
    return (gradient * change).flatten(1).sum(1)


def _embedding_squares(module: nn.Embedding, given: Tensor, gradient: Tensor, share: Tensor) -> Tensor:
    """Only the rows of tokens that an example holds: (B, V, H) would not fit."""
    batch, size = len(given), module.num_embeddings
    keys = (torch.arange(batch, device=given.device)[:, None] * size + given.flatten(1)).flatten()
    unique, place = torch.unique(keys, return_inverse=True)
    summed = gradient.new_zeros(len(unique), gradient.shape[-1])
    summed.index_add_(0, place, gradient.reshape(-1, gradient.shape[-1]))
    token = unique % size
    weighted = summed.square() * share[unique // size, None]
    if module.padding_idx is not None:
        weighted[token == module.padding_idx] = 0
    found = torch.zeros_like(module.weight, dtype=gradient.dtype)
    found.index_add_(0, token, weighted)
    return found


def _unchanged(seen: Seen) -> Tensor:
    if seen.given._version != seen.version:
        raise NotApart(f"{type(seen.module).__name__}: its input was changed in place")
    return seen.given


def calls_in(seen: Mapping[str, Sequence[Seen | None]], layers: Layers, batch: int) -> list[Seen]:
    """Return the calls of the layers in the order of ``layers.owned``.

    Args:
        seen: the calls of one forward pass.
        layers: what was found out about them before.
        batch: examples of the pass.

    Raises:
        NotApart: a layer was called in another way than before.
    """
    found = []
    for name in layers.owned:
        calls = seen.get(name, [])
        if len(calls) != 1 or calls[0] is None or calls[0].shape[0] != batch:
            raise NotApart(f"layer {name}: was called otherwise than before")
        found.append(calls[0])
    return found


def backward(calls: Sequence[Seen], losses: Tensor, keep: bool) -> list[Tensor]:
    """Return the (B, ...) gradient of every call's output.

    Args:
        calls: from ``calls_in``.
        losses: whose sum is differentiated.
        keep: whether another backward pass follows.
    """
    found = torch.autograd.grad(losses.sum(), [c.edge for c in calls], retain_graph=keep, allow_unused=True)
    return [
        torch.zeros(c.shape, dtype=c.dtype, device=c.given.device) if g is None else g.detach()
        for c, g in zip(calls, found, strict=True)
    ]
