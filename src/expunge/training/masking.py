"""Weights that may not move: everything outside a selection stays bitwise as it was.

A gradient that is zeroed is not enough: weight decay moves a weight without any gradient, and so does momentum that an
unmasked step has built up. So masked entries get a gradient of exactly zero in every step, for which AdamW's own update
is exactly zero, and weight decay is applied here, to the chosen entries only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.selections.base import Mask


class MaskedWeights:
    """The weights of a model that a selection lets move.

    Parameters that are not in the mask stop requiring gradients until ``release``.

    Args:
        model: the model.
        mask: parameter name -> bool tensor of its shape, or None for all of it. None lets everything move.

    Raises:
        KeyError: the mask names a parameter that the model does not have.
    """

    def __init__(self, model: nn.Module, mask: Mask | None):
        named = dict(model.named_parameters())
        self.frozen: list[str] = []
        self.masks: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        if mask is None:
            return
        if unknown := sorted(set(mask) - set(named)):
            raise KeyError(f"no parameter of the model is called {unknown[0]}")
        for name, parameter in named.items():
            part = mask.get(name)
            if (name not in mask or (part is not None and not bool(part.any()))) and parameter.requires_grad:
                parameter.requires_grad_(False)
                self.frozen.append(name)
            elif part is not None and not bool(part.all()):
                self.masks[name] = part.to(parameter.device)
                self._parameters[name] = parameter

    def groups(self, trained: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups: those that it decays, and those that ``decay`` does."""
        whole = [p for name, p in trained.items() if name not in self.masks]
        partial = [p for name, p in trained.items() if name in self.masks]
        groups = [{"params": whole, "weight_decay": weight_decay}, {"params": partial, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradient of every entry that may not move."""
        for name, mask in self.masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                # Multiplying would keep NaN; a weight that does not move must not see any of it.
                gradient.masked_fill_(~mask, 0.0)

    @torch.no_grad()
    def decay(self, amount: float) -> None:
        """Shrink the chosen entries of partly masked parameters by ``1 - amount``, as AdamW would all of them.

        Like AdamW, it leaves alone what no gradient has reached.
        """
        for name, mask in self.masks.items():
            parameter = self._parameters[name]
            if amount and parameter.grad is not None:
                parameter.copy_(torch.where(mask, parameter * (1 - amount), parameter))

    @torch.no_grad()
    def add_decay(self, weight_decay: float) -> None:
        """Add the decay of the chosen entries of partly masked parameters to their gradients, as SGD would."""
        if weight_decay:
            for name, mask in self.masks.items():
                parameter = self._parameters[name]
                if parameter.grad is not None:
                    parameter.grad += torch.where(mask, weight_decay * parameter, 0.0)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put entries that may not move back after whatever the enclosed code does to the weights."""
        before = {name: self._parameters[name].detach().clone() for name in self.masks}
        yield
        with torch.no_grad():
            for name, mask in self.masks.items():
                self._parameters[name].copy_(torch.where(mask, self._parameters[name], before[name]))

    def release(self, model: nn.Module) -> None:
        """Let the frozen parameters require gradients again.

        Args:
            model: the model after training, which may be another object with the same names.
        """
        named = dict(model.named_parameters())
        for name in self.frozen:
            named[name].requires_grad_(True)
        self.frozen = []
