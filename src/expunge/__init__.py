"""Expunge removes data from trained models and proves that it is gone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.data.request_files import read_request
    from expunge.forget_sets.select import select_forget_set
    from expunge.methods.run import unlearn
    from expunge.requests.request import DeletionRequest
    from expunge.runs.audit import audit
    from expunge.tasks.causal_lm import CausalLM
    from expunge.tasks.loading import load_task

__version__ = "0.1.0"
__all__ = ["CausalLM", "DeletionRequest", "audit", "load_task", "read_request", "select_forget_set", "unlearn"]

# Names are looked up when first used, so that `import expunge` and `expunge --help` do not wait for torch.
_HOMES = {
    "CausalLM": "expunge.tasks.causal_lm",
    "DeletionRequest": "expunge.requests.request",
    "audit": "expunge.runs.audit",
    "load_task": "expunge.tasks.loading",
    "read_request": "expunge.data.request_files",
    "select_forget_set": "expunge.forget_sets.select",
    "unlearn": "expunge.methods.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
