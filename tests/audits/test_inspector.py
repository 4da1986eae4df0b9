from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from expunge.audits.inspector import NoWeights, opened
from expunge.tasks.causal_lm import CausalLM


def test_a_copy_without_adapters_comes_out(make_lm: Callable[..., CausalLM]) -> None:
    task = make_lm(0)
    task.wrap_lora(rank=2, alpha=4, dropout=0.1)
    task.model.train()
    copy = opened(task, "unlearned")
    assert not any("lora_" in name for name, _ in copy.named_parameters())
    assert any("lora_" in name for name, _ in task.named_parameters())
    assert task.model.training
    assert not copy.model.training
    with torch.no_grad():
        next(copy.model.parameters()).zero_()
    assert next(task.model.parameters()).abs().sum() > 0


def test_what_cannot_be_opened_says_why(make_lm: Callable[..., CausalLM], scripted: Any) -> None:
    with pytest.raises(NoWeights, match=r"'unlearned' \(Scripted\) offers no weights to look into"):
        opened(scripted(), "unlearned")

    class Guard(CausalLM):
        @property
        def base(self) -> CausalLM:
            return make_lm(0)

    inner = make_lm(0)
    with pytest.raises(NoWeights, match=r"\(Guard\) offers no weights of its own: it guards a model"):
        opened(Guard(inner.model, inner.tokenizer), "unlearned")
