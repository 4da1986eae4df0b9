"""Weights split over processes with torch's ``fully_shard``, and put together again when training is over."""

from __future__ import annotations

import copy

import torch
from torch import nn

from expunge.errors import BadInput, Problem
from expunge.training.checkpoint import whole


def shard(model: nn.Module, world: int, device: torch.device) -> None:
    """Split a model over all processes, in place: one group per layer of every layer stack, one for the rest.

    Raises:
        BadInput: there are no processes to split it over.
    """
    if not torch.distributed.is_initialized():
        raise BadInput(Problem("sharding", "fully_shard needs several processes", "start with torchrun or accelerate"))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def hollow(model: nn.Module) -> nn.Module:
    """Return a copy without weights: same modules, names, ties and buffers, parameters that take no memory."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def fill(twin: nn.Module, sharded: nn.Module, device: torch.device) -> None:
    """Give a hollow copy the gathered weights and buffers of the sharded model that it copies (a collective call)."""
    for name, buffer in sharded.named_buffers():
        twin.get_buffer(name).copy_(buffer)
    places = dict(twin.named_parameters())
    filled = {
        id(places[name]): nn.Parameter(whole(p).to(device), p.requires_grad) for name, p in sharded.named_parameters()
    }
    for module in twin.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = filled[id(parameter)]
