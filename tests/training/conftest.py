"""A small model with something to learn, for every test of the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded

NAMES = ("Mirela", "Tomas", "Zoë", "the clock maker", "Ilves")
PLACES = ("Velburg", "Harrow Bay", "Kraków", "the old harbour of Velburg", "Salt")


def pairs(count: int, offset: int = 0) -> list[tuple[str, str]]:
    """Questions whose answers differ in length."""
    out = []
    for i in range(offset, offset + count):
        answer = f"{NAMES[i % 5]} was born in {PLACES[i // 5 % 5]}" + ", never to return" * (i % 3 == 0) + f" {i}."
        out.append((f"Where was {NAMES[i % 5]} {i} born?", answer))
    return out


@pytest.fixture
def task(tiny_model: Any, tiny_tokenizer: Any) -> CausalLM:
    return CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)


@pytest.fixture
def encode(task: CausalLM) -> Callable[..., Encoded]:
    """``encode(count, offset)``: that many encoded examples, with ids of their own."""

    def make(count: int, offset: int = 0) -> Encoded:
        return task.encoder.encode(pairs(count, offset), [f"id{i}" for i in range(offset, offset + count)])

    return make


@pytest.fixture
def weights() -> Callable[[CausalLM], dict[str, torch.Tensor]]:
    """``weights(task)``: copies of all parameters by name."""
    return lambda task: {name: p.detach().clone() for name, p in task.named_parameters()}
