"""Atomic checkpoints in safetensors and JSON, whole whether or not the weights are sharded."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.errors import BadInput, Problem


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded one (a collective call), else the tensor itself; on the CPU, detached."""
    gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().to("cpu", copy=True).contiguous()


def assign(target: Tensor, value: Tensor) -> None:
    """Write a full tensor into a parameter or state tensor, sharded or not."""
    with torch.no_grad():
        if hasattr(target, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)  # type: ignore[attr-defined]
        target.copy_(value)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that receive gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that belong to a model's state, such as the running statistics of batch normalisation."""
    state = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


def gather_state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Collect buffers, trained weights and the optimiser's state for them, as full tensors on the CPU."""
    state: dict[str, Tensor] = {f"buffer.{name}": whole(buffer) for name, buffer in kept_buffers(model).items()}
    for name, parameter in trained_weights(model).items():
        state[f"weight.{name}"] = whole(parameter)
    return state | (optimizer_state(model, optimizer) if optimizer else {})


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect what an optimiser remembers of the trained weights, ``<what>.<parameter name>``, on the CPU."""
    return {
        f"{key}.{name}": whole(value)
        for name, parameter in trained_weights(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Tensor]) -> None:
    """Put back what ``gather_state`` collected."""
    for name, buffer in kept_buffers(model).items():
        assign(buffer, state[f"buffer.{name}"])
    for name, parameter in trained_weights(model).items():
        assign(parameter, state[f"weight.{name}"])
        if optimizer is None:
            continue
        for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
            stored = state.get(f"{key}.{name}")
            if stored is None:
                continue
            slot = optimizer.state[parameter]
            slot[key] = torch.zeros_like(parameter) if key != "step" else torch.zeros((), dtype=torch.float32)
            if key != "step":
                assign(slot[key], stored)
            else:
                slot[key].copy_(stored)


def write_checkpoint(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint so that it is either complete or not there; older ones stay.

    Args:
        folder: the folder of all checkpoints.
        state: tensors from ``gather_state``.
        facts: JSON values; must hold "step".

    Raises:
        BadInput: no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".writing-*"):  # by a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(t.numel() * t.element_size() for t in state.values())
    free = shutil.disk_usage(folder).free
    if free < size + (1 << 20):
        there = any(folder.glob("step-*"))
        after = "from the last complete checkpoint, which is still there" if there else "at its beginning"
        raise BadInput(
            Problem(
                str(folder),
                f"a checkpoint needs {size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free",
                f"free some space; the same command goes on {after}",
            )
        )
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        save_file(dict(state), scratch / "state.safetensors")
        with open(scratch / "facts.json", "w", encoding="utf-8") as handle:
            json.dump(facts, handle)
            handle.flush()
            os.fsync(handle.fileno())
        final = folder / f"step-{facts['step']:08d}"
        if final.exists():
            shutil.rmtree(final)
        os.replace(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_older(folder: Path) -> None:
    """Remove every checkpoint but the newest."""
    for old in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(folder: Path, before: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest complete checkpoint, or None where there is none.

    Args:
        folder: the folder of all checkpoints.
        before: only look at checkpoints of earlier steps than this.

    Raises:
        BadInput: its files are damaged.
    """
    complete = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if before is not None:
        complete = [path for path in complete if int(path.name.removeprefix("step-")) < before]
    if not complete:
        return None
    newest = complete[-1]
    try:
        facts = json.loads((newest / "facts.json").read_text(encoding="utf-8"))
        return load_file(newest / "state.safetensors"), facts
    except Exception as error:
        fix = "delete that folder: the run starts again from the original model"
        raise BadInput(Problem(str(newest), f"is damaged: {error}", fix)) from error
