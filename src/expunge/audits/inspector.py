"""The shape of audits that look into a model: a copy to open, or why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from expunge.errors import BrokenScores, ExpungeError

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM


class NoWeights(ExpungeError):
    """A model that can be asked but not opened: nothing can be said about its parameters."""


def opened(task: CausalLM, name: str) -> CausalLM:
    """Return a copy of a model to look into, adapters folded into its weights, in evaluation mode.

    Args:
        task: the model; it is left as it is.
        name: what it is called, for the message.

    Raises:
        NoWeights: it holds no network of its own, or stands beside one that it does not change.
        BrokenScores: some of its weights are no numbers, so nothing that is not found in them is gone.
    """
    if getattr(task, "base", task) is not task:
        kind = type(task).__name__
        raise NoWeights(
            f"'{name}' ({kind}) offers no weights of its own: it guards a model and leaves its weights as they are, "
            "so whatever they hold is still there"
        )
    network: Any = getattr(task, "model", None)
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        kind = type(task).__name__
        raise NoWeights(f"'{name}' ({kind}) offers no weights to look into; it can only be asked questions")
    broken = next((part for part, p in network.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if broken is not None:
        raise BrokenScores(f"the weights '{broken}' of '{name}' are NaN or infinite")
    copy = task.copy()
    copy.merge_lora()
    copy.model.eval()
    return copy
